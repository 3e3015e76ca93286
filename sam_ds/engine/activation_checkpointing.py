"""Recompute activations in backward instead of keeping them. No wrapper changes a name in the state dict."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from sam_ds.config.errors import UserError, nearest
from sam_ds.config.schema import ModelConfig

MODES = ("none", "torch", "fairscale")


def check(model: ModelConfig) -> None:
    """Raise UserError for settings that do not exist or do not go together."""
    if model.checkpointing not in MODES:
        raise UserError(
            f"model.checkpointing={model.checkpointing!r} is not known; {nearest(model.checkpointing, MODES)}"
        )
    if model.checkpoint_offload and model.checkpointing != "fairscale":
        raise UserError(
            f"model.checkpoint_offload=true needs model.checkpointing=fairscale, not {model.checkpointing!r}"
        )


def apply(modules: dict[str, list[nn.Module]], model: ModelConfig) -> None:
    """Switch recomputation on.

    Args:
        modules: "once", those that run once a step, and "reused", those that run in every round. The reused are
            always recomputed by torch without re-entrance: a re-entrant backward of a module that is used again
            reduces its gradients twice (ZeRO-2) or trips over its hooks (ZeRO-3).
        model: ``checkpointing`` and ``checkpoint_offload``. Frozen modules keep no activations and are left alone.
    """
    check(model)
    if model.checkpointing == "none":
        return
    for module in modules["once"]:
        if not any(parameter.requires_grad for parameter in module.parameters()):
            continue
        if model.checkpointing == "fairscale":
            _wrap_fairscale(module, model.checkpoint_offload)
        else:
            _wrap_torch(module)
    for module in modules["reused"]:
        _wrap_torch(module)


def _wrap_torch(module: nn.Module) -> None:
    """Replace the instance's forward, inside its hooks: ZeRO-3 gathers the weights before the recomputation too."""
    forward = module.forward

    @functools.wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    module.forward = recomputed  # type: ignore[method-assign]


def _wrap_fairscale(module: nn.Module, offload: bool) -> None:
    try:
        from fairscale.nn import checkpoint_wrapper
    except ImportError:
        raise UserError(
            "model.checkpointing=fairscale needs fairscale: pip install fairscale, or choose torch"
        ) from None
    checkpoint_wrapper(module, offload_to_cpu=offload)
