"""A training that is started again and again and gets nowhere: it stops, and says why."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sam_ds.config.errors import UserError
from sam_ds.tracking.journal import read_lines

MAX_STARTS = 3  # from the same step, without a checkpoint after it
_UNKNOWN = "it left no word: killed, out of memory, or its machine gone"


class Starts:
    """``starts.jsonl`` of a run folder: the starts since its last checkpoint, and how they ended. For one rank.

    What ends in a user's mistake, is preempted, or finishes has said so: it leaves no start behind.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "starts.jsonl"

    def begin(self, step: int) -> None:
        """Note that a training starts from ``step``.

        Raises:
            UserError: it did so too often.
        """
        earlier = self._read()
        if sum(start.get("step") == step for start in earlier) >= MAX_STARTS:
            reason = earlier[-1].get("reason") or self._verdict(earlier[-1]) or _UNKNOWN
            raise UserError(
                f"this training has started {MAX_STARTS} times from step {step} without reaching another checkpoint "
                f"(last: {reason}); mend that, then delete {self._path}"
            )
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3)}) + "\n")

    @contextmanager
    def opening(self) -> Iterator[None]:
        """While a training is put together, a user's mistake is none of its failures."""
        try:
            yield
        except UserError:
            self.progressed()
            raise

    def failed(self, reason: str) -> None:
        """Note why the training that began last has ended."""
        starts = self._read()
        if starts:
            starts[-1]["reason"] = " ".join(reason.split())[:500]
            partial = self._path.with_suffix(".partial")
            with suppress(OSError):  # it is over anyway
                partial.write_text("".join(json.dumps(start) + "\n" for start in starts), encoding="utf-8")
                os.replace(partial, self._path)

    def progressed(self) -> None:
        """There is a new checkpoint, or nothing failed."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _verdict(self, start: dict[str, Any]) -> str:
        """What the watchdog said when it ended that start."""
        path = self._path.with_name("stacks_rank_00000.txt")
        if path.is_file() and path.stat().st_mtime > start.get("time", 0.0) - 1.0:  # clocks of disks are coarse
            return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        return ""

    def _read(self) -> list[dict[str, Any]]:
        return [line for line, _ in read_lines(self._path)] if self._path.exists() else []
