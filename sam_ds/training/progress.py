"""How far a training is: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Shows steps and a few numbers, on one rank only. The time that is left is told from when it is entered."""

    def __init__(self, total: int, start: int, enabled: bool) -> None:
        self._total, self._step, self._enabled = total, start, enabled
        self._began = (time.perf_counter(), start)
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> Progress:
        self._began = (time.perf_counter(), self._step)
        if self._enabled and sys.stderr.isatty():
            self._bar = tqdm(total=self._total, initial=self._step, unit="step", dynamic_ncols=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self) -> None:
        self._step += 1
        if self._bar is not None:
            self._bar.update()

    def move_to(self, step: int) -> None:
        """Go on from another step."""
        self._step = step
        self._began = (time.perf_counter(), step)
        if self._bar is not None:
            self._bar.n = step
            self._bar.refresh()

    def show(self, values: Mapping[str, float]) -> None:
        """Numbers of the steps just done: beside the bar, or a line of their own."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            self.say(f"step {self._step}/{self._total}  {text}  {self._left()}")

    def say(self, text: str) -> None:
        """A line that stays."""
        with suppress(OSError):  # a full disk, or nobody who reads: no reason to stop
            if self._bar is not None:
                self._bar.write(text)
            elif self._enabled:
                print(text, flush=True)

    def _left(self) -> str:
        began, start = self._began
        rate = (time.perf_counter() - began) / max(1, self._step - start)
        minutes, seconds = divmod(int(rate * (self._total - self._step)), 60)
        return f"left {minutes}:{seconds:02d}"
