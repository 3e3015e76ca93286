"""What all ranks should hold alike, compared: a flipped bit or a missed update on one of them is seen, and named."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator

import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import Tensor, nn

from sam_ds.engine import distributed


class ReplicaError(RuntimeError):
    """Ranks hold different values of what should be alike: a fault of a machine, or of us. No state to save."""


def compare(task: nn.Module, step: int) -> None:
    """Compare weights and buffers over the ranks, but for those that ZeRO-3 has cut up. Collective.

    To be called before a step's update: ZeRO then writes one rank's values over the others', and what a wrong weight
    has done to the gradients is in all of them. Reads every weight once, and waits for the device.

    Raises:
        ReplicaError: on every rank.
    """
    names, tensors = zip(*_replicated(task), strict=True)
    sums = torch.stack([_checksum(tensor) for tensor in tensors]).tolist()
    if len(set(distributed.gather(hash(tuple(sums))))) == 1:  # of integers: alike in every process
        return
    told = distributed.gather((sums, socket.gethostname()))
    for place, name in enumerate(names):
        own = [values[place] for values, _ in told]
        if len(set(own)) > 1:
            common, count = Counter(own).most_common(1)[0]
            others = [f"{rank} ({told[rank][1]})" for rank, value in enumerate(own) if value != common]
            who = f"rank {', '.join(others)}" if count > len(own) / 2 else "some ranks (no majority)"
            raise ReplicaError(f"in step {step}, {who} and the others differ in {name}: do not trust that machine")


def _replicated(task: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in task.named_parameters():
        if getattr(parameter, "ds_status", ZeroParamStatus.AVAILABLE) is ZeroParamStatus.AVAILABLE:
            yield name, parameter.data
    yield from task.named_buffers()


def _checksum(tensor: Tensor) -> Tensor:
    """int64 []: the sum of a tensor's bits, taken as integers: exact, in any order."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(bits).sum(dtype=torch.int64)
