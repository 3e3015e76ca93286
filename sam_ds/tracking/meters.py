"""How fast a run is and how much memory it takes."""

from __future__ import annotations

import resource
import sys
import time

import torch


class Throughput:
    """What went through between two readings, by the wall clock: waiting for data counts, an evaluation need not."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what was counted, and the time: after an evaluation or a save."""
        self._images, self._objects, self._steps = 0, 0, 0
        self._since = time.perf_counter()

    def add(self, images: int, object_rounds: int) -> None:
        """One optimizer step, of all ranks together: pictures, and objects times rounds of prompts."""
        self._images += images
        self._objects += object_rounds
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Rates since the last reading, which starts the next one."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        rates = {
            "throughput/images_per_s": self._images / seconds,
            "throughput/object_rounds_per_s": self._objects / seconds,
            "throughput/steps_per_s": self._steps / seconds,
        }
        self.restart()
        return rates


def peak_memory(device: torch.device) -> dict[str, float]:
    """GiB at the highest so far: of this process, and on a GPU what torch's allocator gave out and held."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    peaks = {"memory/host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    if device.type == "cuda":
        peaks["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        peaks["memory/gpu_reserved_peak_gib"] = torch.cuda.max_memory_reserved(device) / 2**30
    return peaks
