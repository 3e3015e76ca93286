"""Tile sizes, warps and stages of the kernels, measured or chosen per GPU generation: ``configs/*.json``.

An entry is for a size: the channels of a head, or the columns of a mask. A size takes the smallest entry that is not
below it, else the largest there is.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import triton

FOLDER = Path(__file__).parent / "configs"
GENERATIONS = {"sm80": 80, "sm90": 90}  # file: the lowest compute capability it is for
Config = dict[str, int]
forced_generation: str | None = None  # instead of the device's, set while launches are only recorded
_tried: dict[str, Config] = {}


def of_type(kernel: str, x: torch.Tensor) -> str:
    """The entries of a kernel that multiplies tensors like ``x``.

    float32 has its own: the matrix units do not multiply it exactly, and without them each thread holds whole rows of
    what it multiplies, so tiles must be small. In the interpreter a small tile takes as long as a large one.
    """
    return f"{kernel}_float32" if x.dtype == torch.float32 and x.device.type != "cpu" else kernel


def config_for(kernel: str, size: int, device: torch.device) -> Config:
    """The config of a kernel for a size, from the file of the device's generation."""
    return _tried.get(kernel) or lookup(forced_generation or generation(device), kernel, size)


@contextmanager
def trying(kernel: str, config: Config) -> Iterator[None]:
    """Let a kernel run with another config than its file's."""
    _tried[kernel] = config
    try:
        yield
    finally:
        del _tried[kernel]


def generation(device: torch.device) -> str:
    """The newest generation that is not newer than the device; on a CPU, whose interpreter takes any, the oldest."""
    if device.type != "cuda":
        return "sm80"
    major, minor = torch.cuda.get_device_capability(device)
    fitting = [name for name, lowest in GENERATIONS.items() if lowest <= 10 * major + minor]
    return fitting[-1] if fitting else "sm80"


def lookup(name: str, kernel: str, size: int) -> Config:
    """A generation's entry for a kernel and size."""
    entries = load(name)[kernel]
    sizes = sorted(map(int, entries))
    return entries[str(next((entry for entry in sizes if entry >= size), sizes[-1]))]


@functools.cache
def load(name: str) -> dict[str, dict[str, Config]]:
    """kernel → size → config."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def split_head_dim(head_dim: int) -> tuple[int, int]:
    """Two powers of two that cover ``head_dim``, the second possibly 0: 80 is 64 and 16, not 128."""
    first = 1 << (head_dim.bit_length() - 1)
    if first < 16:
        return 16, 0
    return first, max(16, triton.next_power_of_2(head_dim - first)) if head_dim > first else 0


def float_precision(dtype: torch.dtype) -> str:
    """How ``tl.dot`` multiplies float32: exactly. It says nothing about 16-bit inputs."""
    return "ieee" if dtype == torch.float32 else "tf32"
