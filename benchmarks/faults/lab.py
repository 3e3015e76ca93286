"""What all rows of the scorecard share: a laboratory for trials, and what they came to."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from faults.lives import Life, Training, same

TIMEOUT = 5.0  # seconds; of the watchdog in the rows that need it


@dataclass(frozen=True)
class Row:
    """What one fault came to."""

    fault: str
    figure: str
    value: str
    goal: str
    met: bool
    trials: int


@dataclass
class Lab:
    """Where trials are made: the pictures, and how a training ends that meets no fault."""

    root: Path
    data: Path
    trials: int  # of a cheap fault
    few: int  # of an expensive one
    soak: float  # seconds of random faults
    reference: Training
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def training(self, folder: Path | None = None, **changes: object) -> Training:
        """A new one."""
        output = (folder or self.root) / f"run_{next(self._numbers):04d}"
        return dataclasses.replace(self.reference, output=output, **changes)  # type: ignore[arg-type]

    def scratch(self) -> Path:
        """A path that is free."""
        return self.root / f"scratch_{next(self._numbers):04d}"

    def held(self, right: bool, fault: object, life: Life) -> bool:
        """``right``; where it is not, what happened is shown."""
        if not right:
            print(
                f"MISSED: {fault}: {life.codes}, {life.seconds:.0f} s\n{life.said[-2000:]}", file=sys.stderr, flush=True
            )
        return right

    def exact(self, training: Training) -> bool:
        """Whether it ended as if nothing had happened; its folder is then deleted."""
        whole = same(training, self.reference)
        if whole:
            self.forget(training)
        return whole

    def forget(self, training: Training) -> None:
        shutil.rmtree(training.output, ignore_errors=True)


def share(outcomes: list[bool]) -> str:
    return f"{100 * sum(outcomes) / len(outcomes):.0f} %"


def counted(fault: str, outcomes: dict[str, list[bool]]) -> Iterator[Row]:
    """A row for each thing that must be so in every trial."""
    for figure, results in outcomes.items():
        yield Row(fault, figure, share(results), "100 %", all(results), len(results))


def steps_done(life: Life) -> int:
    """The last step that a life has reported."""
    return max((int(step) for step in re.findall(r"^step (\d+)/", life.said, re.MULTILINE)), default=0)


def going_on_from(life: Life) -> int:
    """The step that a life has begun with."""
    found = re.search(r"going on from \S*step_(\d+)", life.said)
    return int(found[1]) if found else 0


def spread(seconds: list[float]) -> str:
    return f"{median(seconds):.2f} ({max(seconds):.2f})"
