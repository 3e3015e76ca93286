"""Pictures that are left out: what takes their place, the record of them, and when there are too many."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sam_ds.config.errors import RankError
from sam_ds.data.files import BadSampleError
from sam_ds.data.sampler import Sampler

_ATTEMPTS = 16  # substitutes tried for one position before the set is given up
# So many different bad pictures are always borne: a part of a small set says little.
_ALWAYS_BORNE = 10
_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Bad:
    """A picture that was left out."""

    sample: int
    file: str
    reason: str


def first_good(
    sampler: Sampler, position: int, make: Callable[[int], _T], name: Callable[[int], str]
) -> tuple[_T | None, list[Bad]]:
    """What ``make`` makes of the sample at a stream position, or of the one that takes its place.

    Args:
        make: of a sample; it raises BadSampleError.
        name: where a sample is.

    Returns:
        None if one substitute after another is bad too; and the bad ones met on the way.
    """
    bad: list[Bad] = []
    for attempt in range(_ATTEMPTS):
        sample = sampler.substitute(position, attempt) if attempt else sampler.sample(position)
        try:
            return make(sample), bad
        except BadSampleError as error:
            bad.append(Bad(sample, name(sample), str(error)))
    return None, bad


class Quarantine:
    """Counts different bad pictures and writes each as one line of JSON: sample, file, reason.

    Args:
        path: where to append, or None to keep no record. Ranks may share it: a line is written in one go.
        budget: the part of the pictures seen so far that may be bad.
        size: pictures in the set.
    """

    def __init__(self, path: Path | None, budget: float, size: int) -> None:
        self.path, self.budget, self.size = path, budget, size
        self.bad: dict[int, Bad] = {}
        self._seen = 0

    def add(self, bad: list[Bad], good: int) -> None:
        """Note the bad ones met on the way to the next ``good`` pictures.

        Raises:
            RankError: more than the budget is bad.
        """
        self._seen += len(bad) + good
        for new in bad:
            if new.sample not in self.bad:
                self.bad[new.sample] = new
                self._write(new)
        seen_pictures = min(self._seen, self.size)  # later epochs show the same ones again
        if len(self.bad) > max(_ALWAYS_BORNE, self.budget * seen_pictures):
            last = next(reversed(self.bad.values()))
            raise RankError(
                f"{len(self.bad)} of the first {seen_pictures} pictures are bad, more than "
                f"data.bad_budget={self.budget} allows; the last: {last.file}: {last.reason}"
                + (f" (all in {self.path})" if self.path else "")
            )

    def give_up(self, bad: list[Bad]) -> RankError:
        """The error for one bad substitute after another."""
        last = bad[-1]
        return RankError(f"{len(bad)} pictures in a row are bad; the last: {last.file}: {last.reason}")

    def _write(self, bad: Bad) -> None:
        if self.path is None:
            return
        line = json.dumps({"sample": bad.sample, "file": bad.file, "reason": bad.reason}) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        except OSError as error:  # a full disk costs the record, not the training
            _logger.warning("%s cannot be written (%s); left out: %s", self.path, error.strerror, line.rstrip())
