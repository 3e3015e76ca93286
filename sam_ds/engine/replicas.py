"""What all ranks should hold alike, compared: a flipped bit or a missed update on one of them is seen, and named."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator

import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import Tensor

from sam_ds.engine import distributed
from sam_ds.engine.engine import Engine


class ReplicaError(RuntimeError):
    """Ranks hold different values of what should be alike: a fault of a machine, or of us. No state to save."""


def check_one(engine: Engine, step: int) -> None:
    """Compare one tensor over the ranks, the next one with each step. Collective; waits for the device.

    Raises:
        ReplicaError: on every rank.
    """
    held = list(_replicated(engine))
    if held:
        _compare([held[step % len(held)]], step)


def check_all(engine: Engine, step: int) -> None:
    """Compare all, as ``check_one`` does one."""
    _compare(list(_replicated(engine)), step)


def _replicated(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """Weights and buffers that this rank holds whole: all but those that ZeRO-3 has cut up."""
    for name, parameter in engine.task.named_parameters():
        if getattr(parameter, "ds_status", ZeroParamStatus.AVAILABLE) is ZeroParamStatus.AVAILABLE:
            yield name, parameter.data
    yield from engine.task.named_buffers()


def _compare(held: list[tuple[str, Tensor]], step: int) -> None:
    sums = torch.stack([_checksum(tensor) for _, tensor in held]).tolist()
    told = distributed.gather((sums, socket.gethostname()))
    for place, (name, _) in enumerate(held):
        own = [values[place] for values, _ in told]
        if len(set(own)) > 1:
            common, count = Counter(own).most_common(1)[0]
            others = [f"{rank} ({told[rank][1]})" for rank, value in enumerate(own) if value != common]
            who = f"rank {', '.join(others)}" if count > len(own) / 2 else "some ranks (no majority)"
            raise ReplicaError(f"after step {step}, {who} and the others differ in {name}: do not trust that machine")


def _checksum(tensor: Tensor) -> Tensor:
    """int64 []: the sum of a tensor's bits, taken as integers: exact, in any order."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(bits).sum(dtype=torch.int64)
