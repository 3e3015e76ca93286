"""The AdamW implementations: which can be used here, and building the one chosen."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch
from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder

from sam_ds.config.schema import OptimConfig
from sam_ds.optim.build import choose


def why_not(implementation: str) -> str:
    """Why an implementation cannot be used in this environment, "" if it can."""
    if implementation == "apex_fused":
        # The registry's "apex" is another package: only NVIDIA's, built from source, has amp_C.
        found = importlib.util.find_spec("apex") and importlib.util.find_spec("amp_C")
        return "" if found else "NVIDIA apex is not installed with its CUDA extensions"
    if implementation == "deepspeed_cpu":
        return "" if CPUAdamBuilder().is_compatible(verbose=False) else "DeepSpeed cannot compile its CPU Adam"
    if implementation == "deepspeed_fused":
        return "" if FusedAdamBuilder().is_compatible(verbose=False) else "DeepSpeed cannot compile its fused Adam"
    return ""


def build_adamw(
    groups: list[dict[str, Any]], optim: OptimConfig, device: torch.device, offload: bool
) -> torch.optim.Optimizer:
    """AdamW over ``groups`` (of ``optim.param_groups``), by the implementation that ``optim`` asks for.

    Raises:
        UserError: it cannot be used here.
    """
    choice = choose(optim.implementation, device.type, offload, why_not)
    if choice.warning:
        warnings.warn(choice.warning, stacklevel=2)
    settings: dict[str, Any] = {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps}
    plain = [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in groups]
    if choice.implementation == "deepspeed_cpu":
        from deepspeed.ops.adam import DeepSpeedCPUAdam  # compiles on import of its kernel: only when it is wanted

        return DeepSpeedCPUAdam(plain, adamw_mode=True, **settings)
    if choice.implementation == "deepspeed_fused":
        from deepspeed.ops.adam import FusedAdam

        return FusedAdam(plain, adam_w_mode=True, **settings)
    if choice.implementation == "apex_fused":
        from apex.optimizers import FusedAdam as ApexFusedAdam

        return ApexFusedAdam(plain, adam_w_mode=True, **settings)
    return torch.optim.AdamW(plain, fused=True, **settings)
