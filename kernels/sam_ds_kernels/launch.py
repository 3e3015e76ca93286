"""Starting a kernel, or only writing down how it would be started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton

from . import configs

OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")  # of the compiler: arguments that no kernel has

# Kernels are interpreted in Python instead of compiled: TRITON_INTERPRET=1, before this package is imported.
INTERPRETED: bool = triton.knobs.runtime.interpret


@dataclass(frozen=True)
class Launch:
    kernel: Any  # the @triton.jit function
    grid: tuple[int, ...]
    tensors: tuple[torch.Tensor, ...]  # in the order of the kernel's first arguments
    arguments: dict[str, Any]  # the others, and OPTIONS

    def start(self) -> Any:
        """On the tensors' device, which Triton takes to be the current one. Returns what Triton compiled."""
        device = self.tensors[0].device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return self.kernel[self.grid](*self.tensors, **self.arguments)


_recorded: list[Launch] | None = None


def launch(kernel: Any, grid: tuple[int, ...], *tensors: torch.Tensor, **arguments: Any) -> None:
    # Products and sums are fused unless a kernel says otherwise; what Triton does by itself depends on its version.
    started = Launch(kernel, grid, tensors, {"enable_fp_fusion": True, **arguments})
    if _recorded is not None:
        _recorded.append(started)
    if configs.forced_generation is None:
        started.start()


@contextmanager
def recording(generation: str | None = None) -> Iterator[list[Launch]]:
    """Collect the launches.

    Args:
        generation: collect them as this GPU generation ("sm80") would have them, and start none: tensors may be on
            ``meta``. None: they run as ever.
    """
    global _recorded  # noqa: PLW0603
    _recorded, configs.forced_generation = [], generation
    try:
        yield _recorded
    finally:
        _recorded = configs.forced_generation = None
