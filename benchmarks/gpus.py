"""GPUs as their datasheets and CUDA's table of instruction throughputs describe them."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    name: str
    generation: str  # of the kernels' configs
    multiprocessors: int  # of four parts each
    ghz: float  # at which the datasheet's peak is reached
    macs: int  # bfloat16 multiply-adds a cycle and part
    float_lanes: int  # float32 additions and multiplications a cycle and part
    registers: int  # a multiprocessor
    shared: int  # bytes a multiprocessor
    bandwidth: float  # bytes a second

    @property
    def flops(self) -> float:
        """A second, dense bfloat16."""
        return 2.0 * self.multiprocessors * 4 * self.macs * self.ghz * 1e9


GPUS = (
    Gpu("A100", "sm80", 108, 1.41, 256, 16, 65_536, 164 * 1024, 2.0e12),
    Gpu("H100", "sm90", 132, 1.83, 512, 32, 65_536, 228 * 1024, 3.35e12),
    Gpu("H200", "sm90", 132, 1.83, 512, 32, 65_536, 228 * 1024, 4.8e12),
)


def at_hand() -> Gpu | None:
    """The one that torch sees, if it is here listed."""
    import torch

    return called(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def called(device: str) -> Gpu | None:
    """The one whose name stands in a device's as a word of its own: a GH200 is no H200."""
    return next((gpu for gpu in GPUS if re.search(rf"\b{gpu.name}\b", device)), None)
