"""The full fp32 weights of an engine, whatever ZeRO has done with them."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors


def cast_parameters(task: nn.Module, precision: str) -> None:
    """Parameters to a config's precision, as DeepSpeed does it: buffers stay as they are."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for parameter in task.parameters():
        parameter.data = parameter.data.to(dtype)


def float_copies(task: nn.Module, only_frozen: bool = False) -> dict[str, Tensor]:
    """fp32 copies on the host of the parameters of a task that is not yet handed to DeepSpeed."""
    return {
        name: parameter.detach().float().cpu().clone()
        for name, parameter in task.named_parameters()
        if not (only_frozen and parameter.requires_grad)
    }


@torch.no_grad()
def gather(ds: DeepSpeedEngine, frozen: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The state dict of the task in fp32 on the host: parameters from their masters, buffers as they are.

    A collective: every rank calls it. Only those with ``keep`` get the result, the others an empty dict.

    Args:
        frozen: fp32 originals of the parameters that are not trained, which DeepSpeed holds in 16 bits only.
    """
    persistent = set(ds.module.state_dict())
    plain = _stage_0_masters(ds.optimizer)
    weights: dict[str, Tensor] = {}
    for name, parameter in ds.module.named_parameters():
        full = frozen.get(name) if not parameter.requires_grad else _master(parameter, plain)
        if keep:
            assert full is not None, f"no fp32 weights for {name}"
            weights[name] = full.detach().to("cpu", torch.float32, copy=True)
    if keep:
        for name, buffer in ds.module.named_buffers():
            if name in persistent:
                weights[name] = buffer.detach().cpu().clone()
    return weights


@torch.no_grad()
def set_masters(ds: DeepSpeedEngine, weights: dict[str, Tensor]) -> None:
    """Give the fp32 masters their exact values: DeepSpeed makes them from weights already rounded to 16 bits.

    A collective. The 16-bit weights stay as they are: they are the masters, rounded.
    """
    plain = _stage_0_masters(ds.optimizer)
    for name, parameter in ds.module.named_parameters():
        if not parameter.requires_grad:
            continue
        value = weights[name].to(ds.device)
        if id(parameter) in plain:
            plain[id(parameter)].copy_(value)
        else:
            safe_set_full_fp32_param(parameter, value)


def gather_as_one(task: nn.Module, classes: list[type[nn.Module]]) -> None:
    """Let ZeRO-3 gather all weights of each module of these classes when the module starts.

    They read their children's weights themselves, where the children's own hooks don't see it. DeepSpeed's leaf
    modules would do, but they reduce a gradient after each call: a module that runs in every round trips over it.
    """
    for module in task.modules():
        if isinstance(module, tuple(classes)):
            for parameter in module.parameters():
                deepspeed.zero.register_external_parameter(module, parameter)


def gathered_gradient(parameter: nn.Parameter) -> Tensor | None:
    """The full averaged gradient, between backward and step. A collective."""
    return deepspeed.utils.safe_get_full_grad(parameter)


def _master(parameter: nn.Parameter, plain: dict[int, Tensor]) -> Tensor:
    if id(parameter) in plain:
        return plain[id(parameter)]
    full = safe_get_full_fp32_param(parameter)
    return parameter.data if full is None else full  # stage 0 in fp32: the parameter is its own master


def _stage_0_masters(optimizer: Any) -> dict[int, Tensor]:
    """The masters of 16-bit training without ZeRO, by the id of their parameter; empty under ZeRO."""
    if not hasattr(optimizer, "fp16_groups") or hasattr(optimizer, "fp16_partitioned_groups"):
        return {}
    masters: dict[int, Tensor] = {}
    for index, group in enumerate(optimizer.fp16_groups):
        if hasattr(optimizer, "fp32_groups_flat"):  # of a fused Adam: one flat tensor a group
            views = _unflatten_dense_tensors(optimizer.fp32_groups_flat[index], group)
        else:
            views = optimizer.fp32_groups[index]
        masters.update({id(parameter): view for parameter, view in zip(group, views, strict=True)})
    return masters
