"""Means of what the steps since the last report did."""

from __future__ import annotations

from torch import Tensor

from sam_ds.engine import distributed
from sam_ds.engine.engine import Engine, StepResult
from sam_ds.tracking.meters import Throughput, peak_memory


class StepMeter:
    """Adds logs up on the device and reads them once a report."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._throughput = Throughput()
        self._last: StepResult | None = None
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def add(self, result: StepResult, pictures: int, rounds: int) -> None:
        """One step of ``pictures`` on all ranks, whose objects were decoded ``rounds`` times.

        A skipped step counts for the throughput, but not for the means.
        """
        self._last = result
        # The count was ready before the forward, and the check of the norm has waited for the step: this is free.
        self._throughput.add(pictures, int(result.count) * rounds)
        if result.skipped:
            return
        self._steps += 1
        for name, value in result.logs.items():
            self._sums[name] = self._sums.get(name, 0) + value

    def read(self) -> dict[str, float]:
        """Everything to report of the steps since the last reading. Collective, one host sync."""
        means = {name: total / self._steps for name, total in self._sums.items()}
        values = distributed.mean_logs(means) if means else {}
        if self._last is not None:
            values |= {"lr": self._last.lr, "grad_norm": float(self._last.grad_norm)}
            values |= {"loss_scale": self._last.loss_scale} if self._engine.config.precision == "fp16" else {}
        values |= self._throughput.read()
        values |= {f"time/{part}": seconds for part, seconds in self._engine.times.read().items()}
        values |= peak_memory(self._engine.device)
        self.forget()
        return values

    def forget(self) -> None:
        """Leave out the steps since the last reading."""
        self._sums, self._steps, self._last = {}, 0, None

    def restart(self) -> None:
        """What came since the last reading (an evaluation, a save) is no part of a step's time."""
        self._engine.times.start()
        self._throughput.restart()
