"""AdamW's moments of an engine, by parameter, whatever ZeRO has cut the parameters into.

A rank holds, and steps, some part of each parameter: a range of its elements in their flattened order. Said so, the
moments of one world fit any other number of ranks, ZeRO stage and precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor

KEYS = ("exp_avg", "exp_avg_sq")


_Found = tuple[int, int, Tensor, int]  # all of a Part but its name


@dataclass(frozen=True)
class Part:
    """The elements of a parameter that this rank steps."""

    name: str
    start: int  # the first of them in the parameter, flattened
    numel: int
    owner: Tensor  # what the optimizer knows: parts of many parameters in one row, or the parameter itself
    offset: int  # the first of them there


def parts(ds: DeepSpeedEngine) -> list[Part]:
    """Of every trained parameter the part of this rank, if it has one, in the order of the parameters.

    Without ZeRO every rank has all of every parameter.
    """
    optimizer = ds.optimizer
    find: Callable[[Any, Any], _Found | None]
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        find = _in_zero_3
    elif any(hasattr(p, "_hp_mapping") for p in ds.module.parameters()):
        find = _in_zero_2
    else:
        find = _without_zero(optimizer)
    trained = ((name, p) for name, p in ds.module.named_parameters() if p.requires_grad)
    return [Part(name, *found) for name, p in trained if (found := find(optimizer, p)) is not None]


def _in_zero_3(optimizer: Any, parameter: Any) -> _Found | None:
    group, offset, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = padded * optimizer._get_param_partition_rank(parameter)
    numel = min(padded, parameter.ds_numel - start)  # the last ranks' parts end in padding, or are nothing else
    return (start, numel, optimizer.fp32_partitioned_groups_flat[group], offset) if numel > 0 else None


def _in_zero_2(optimizer: Any, parameter: Any) -> _Found | None:
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    bf16 = getattr(optimizer, "fp32_groups_flat_partition", None)  # of DeepSpeed's BF16_Optimizer
    owners = bf16 if bf16 is not None else optimizer.single_partition_of_fp32_groups
    own, there = mapping.lp_fragment_address, mapping.hp_fragment_address
    return own.start, own.numel, owners[mapping.param_group_index], there.start


def _without_zero(optimizer: Any) -> Callable[[Any, Any], _Found | None]:
    owners: dict[int, tuple[Tensor, int]] = {}
    for index, group in enumerate(getattr(optimizer, "fp16_groups", [])):
        offset = 0
        for place, parameter in enumerate(group):
            if hasattr(optimizer, "fp32_groups_flat"):  # of a fused Adam: one row a group
                owners[id(parameter)] = optimizer.fp32_groups_flat[index], offset
            else:
                owners[id(parameter)] = optimizer.fp32_groups[index][place], 0
            offset += parameter.numel()

    def find(_: Any, parameter: Any) -> _Found:
        owner, offset = owners.get(id(parameter), (parameter, 0))
        return 0, parameter.numel(), owner, offset

    return find


@torch.no_grad()
def copies(ds: DeepSpeedEngine) -> Iterator[tuple[Part, dict[str, Tensor]]]:
    """The moments of this rank's parts, copied to the host; nothing where no step was taken yet."""
    state = ds.basic_optimizer.state
    for part in parts(ds):
        own = state.get(part.owner)
        if own:
            yield part, {key: piece(part, own[key]).to("cpu", torch.float32, copy=True) for key in KEYS}


def steps_taken(ds: DeepSpeedEngine) -> int:
    """Steps that the moments are the mean of: what AdamW corrects their bias by."""
    for group in ds.basic_optimizer.param_groups:
        if "step" in group:  # DeepSpeed's and apex's FusedAdam
            return int(group["step"])
    return max((int(own["step"]) for own in ds.basic_optimizer.state.values() if "step" in own), default=0)


@torch.no_grad()
def restore(ds: DeepSpeedEngine, read: Callable[[str, str, int, int], Tensor], steps: int) -> None:
    """Give this rank's parts their moments.

    Args:
        read: (key, name, start, numel) to the elements of a parameter's moment.
        steps: as ``steps_taken`` said.
    """
    optimizer = ds.basic_optimizer
    torch_counts = type(optimizer) is torch.optim.AdamW  # where it steps; DeepSpeed's CPU Adam counts on the host
    stepped = [owner for group in optimizer.param_groups for owner in group["params"]]
    for owner in getattr(ds.optimizer, "fp32_partitioned_groups_flat", stepped):  # ZeRO-3 lends them for a step
        step = torch.tensor(float(steps), device=owner.device) if torch_counts else steps
        zeros = {key: torch.zeros_like(owner, requires_grad=False) for key in KEYS}
        optimizer.state[owner] = {"step": step, **zeros}
    if type(optimizer).__name__ == "FusedAdam":  # DeepSpeed's and apex's
        for group in optimizer.param_groups:
            group["step"] = steps
    for part in parts(ds):
        for key in KEYS:
            piece(part, optimizer.state[part.owner][key]).copy_(read(key, part.name, part.start, part.numel))


def piece(part: Part, row: Tensor) -> Tensor:
    """The part's own elements of its owner, or of a moment of it: a view, flat."""
    return row.view(-1).narrow(0, part.offset, part.numel)
