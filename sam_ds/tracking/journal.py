"""``metrics.jsonl``: everything a run reports, one JSON object a line, only ever appended to.

A line has "step", "time" (seconds since 1970) and either metrics (several lines of a step add up; numbers that JSON
lacks are the texts "nan", "inf", "-inf") or "artifact", a file of the run folder to hand to the tracking server. A run
that goes on from a checkpoint first writes "resumed": 1 at its step; lines before it of later steps are then void.

It is also the spool of the MLflow writer: what a server that is down has missed is sent from here.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

NAME = "metrics.jsonl"
_MOST_KEPT = 1 << 26  # bytes


class Journal:
    """Appends to a run folder's ``metrics.jsonl``, or to a file like it.

    Every line is on its way to the disk when a call returns.
    What a full or failing disk does not take is kept, and written when it does.
    """

    def __init__(self, run_dir: Path, resumed_at: int | None = None, name: str = NAME) -> None:
        """``resumed_at``: the number of steps the checkpoint has seen; None for a new run."""
        self.run_dir = run_dir.absolute()
        self.step = resumed_at or 0
        path = self._path = self.run_dir / name
        torn = path.exists() and not _ends_a_line(path)
        self._file = path.open("ab", buffering=0)
        self._kept = b"\n" if torn else b""
        self._failing = False
        if resumed_at is not None:
            self.resumed(resumed_at)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.step = step
        self._add({name: value if math.isfinite(value) else str(float(value)) for name, value in values.items()})

    def resumed(self, step: int) -> None:
        """The run goes on from ``step``: lines of later ones are void."""
        self.metrics(step, {"resumed": 1.0})

    def artifact(self, path: Path) -> None:
        path = path.absolute()
        inside = path.is_relative_to(self.run_dir)
        self._add({"artifact": str(path.relative_to(self.run_dir) if inside else path)})

    def close(self) -> None:
        self._write()
        self._file.close()

    def _add(self, values: Mapping[str, Any]) -> None:
        line = json.dumps({"step": self.step, "time": round(time.time(), 3), **values}) + "\n"
        if len(self._kept) < _MOST_KEPT:
            self._kept += line.encode()
        self._write()

    def _write(self) -> None:
        try:
            while self._kept:
                self._kept = self._kept[self._file.write(self._kept) :]
            self._failing = False
        except OSError as error:
            if not self._failing:
                with suppress(OSError):
                    print(f"{self._path} cannot be written ({error.strerror}): kept in memory", file=sys.stderr)
            self._failing = True


def _ends_a_line(path: Path) -> bool:
    """False if the process that wrote last was killed in the middle of a line."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1))
        return file.read() in (b"", b"\n")


def read_lines(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Every whole line from a byte offset on, and the offset after it. A torn line is skipped."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                yield json.loads(line), offset
            except ValueError:
                continue


def read_metrics(path: Path) -> list[dict[str, float]]:
    """One dictionary a step, in order, with "step" and all metrics of the step; of a repeated one the newest value.

    What a run did after the checkpoint it was later resumed from is left out.
    """
    steps: dict[int, dict[str, float]] = {}
    for line, _ in read_lines(path):
        if "artifact" in line:
            continue
        if "resumed" in line:
            steps = {step: values for step, values in steps.items() if step <= line["step"]}
        values = {name: float(value) for name, value in line.items() if name not in ("step", "time", "resumed")}
        if values:
            steps.setdefault(line["step"], {"step": line["step"]}).update(values)
    return [steps[step] for step in sorted(steps)]
