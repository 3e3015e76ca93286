"""Do the numbers of a training look sound? The answer is alike on all ranks, as are the numbers it is told."""

from __future__ import annotations

from collections import deque
from statistics import median

from sam_ds.config.schema import TrainConfig
from sam_ds.training.state import TrainState

_HISTORY = 20  # reports that a loss is compared with
_ENOUGH = 5  # without so many of them nothing is said


class Health:
    """Sees single bad steps pass, and says when they do not mend themselves."""

    def __init__(self, train: TrainConfig) -> None:
        self._train = train
        self._losses: deque[float] = deque(maxlen=_HISTORY)
        self._stage: object = None
        self._spikes = 0

    def after_step(self, state: TrainState) -> str:
        """Why the training cannot go on so, or ""."""
        if state.skipped_in_a_row < self._train.max_skipped:
            return ""
        return f"the loss or its gradient was not finite in {state.skipped_in_a_row} steps in a row"

    def after_report(self, loss: float, stage: object) -> tuple[bool, str]:
        """Whether a mean loss over all ranks is a spike, and why the training cannot go on so, or "".

        A spike is ``spike_factor`` times the median of the last reports. It does not itself count among them.

        Args:
            stage: losses are compared within one only: more rounds, say, sum up to more.
        """
        if stage != self._stage:
            self.forget()
            self._stage = stage
        usual = median(self._losses) if len(self._losses) >= _ENOUGH else float("inf")
        spike = 0.0 < self._train.spike_factor * usual < loss
        self._spikes = self._spikes + 1 if spike else 0
        if not spike:
            self._losses.append(loss)
            return False, ""
        enough = self._spikes >= self._train.spike_reports
        reason = f"the loss is at {loss:.4g} for {self._spikes} reports; the median of those before is {usual:.4g}"
        return True, reason if enough else ""

    def forget(self) -> None:
        """What is reported from now on is not to be compared with what was."""
        self._losses.clear()
        self._spikes = 0
