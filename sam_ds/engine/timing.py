"""Where a step's time goes, without waiting for the device inside the step."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

PARTS = ("data", "forward", "backward", "step")


class PhaseTimes:
    """Adds up the time between marks, each by the name of the part that a mark ends.

    On a GPU the marks are events in its stream, so kernels that still run count for the part that started them.
    """

    def __init__(self, device: torch.device) -> None:
        self._mark: Callable[[], object] = _cuda_event if device.type == "cuda" else time.perf_counter
        self._marks: list[tuple[str, object]] = []
        self._steps = 0
        self.start()

    def start(self) -> None:
        """What happened since the last mark (an evaluation, a save) is no part of a step."""
        self._marks.append(("", self._mark()))

    def mark(self, part: str) -> None:
        self._marks.append((part, self._mark()))
        self._steps += part == "step"

    def read(self) -> dict[str, float]:
        """Mean seconds a step of each part since the last reading; waits for the device."""
        if isinstance(self._marks[-1][1], torch.cuda.Event):
            self._marks[-1][1].synchronize()
        totals = dict.fromkeys(PARTS, 0.0)
        for (_, before), (part, after) in zip(self._marks, self._marks[1:], strict=False):
            if part:
                totals[part] += _seconds(before, after)
        steps, self._steps = max(1, self._steps), 0
        self._marks = self._marks[-1:]
        return {part: seconds / steps for part, seconds in totals.items()}


def _cuda_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(before: object, after: object) -> float:
    if isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event):
        return before.elapsed_time(after) / 1000
    return after - before  # type: ignore[operator]  # two readings of perf_counter
