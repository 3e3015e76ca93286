"""Small constant tensors that are made where they are needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def constant(values: Sequence[float] | Sequence[int], device: torch.device) -> Tensor:
    """The numbers as a tensor [n]: float32, or int64 for whole numbers.

    Filled in on the device. ``torch.tensor`` makes it on the host, and the copy waits for all that the device has yet
    to do.
    """
    return torch.stack([torch.full((), value, device=device) for value in values])
