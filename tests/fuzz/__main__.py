"""Millions of cases: ``python -m tests.fuzz [--cases N] [--seed N] [--no-save]``; ``make fuzz CASES=N``.

Prints a line for each target and each kind of failure, and adds a row a target to ``benchmarks/results/fuzz.csv``. A
failure is another exception than the documented one, a broken invariant of what was accepted, or a case that takes
longer than ``SECONDS`` or asks for more memory than ``MEMORY``. Exits with 1 if there is any.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random
from types import FrameType

from tests.fuzz.targets import Target, outcome, targets

ROOT = Path(__file__).resolve().parents[2]
IN_MEMORY = Path("/dev/shm")  # a disk would take most of the time
SECONDS = 10.0  # of one case
MEMORY = 2 << 30  # bytes that a case may add to the process
_SHOWN = 3  # failures of a kind that are shown whole


class TooSlow(Exception):
    """A case took longer than it may."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2_000_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other cases")
    parser.add_argument("--only", help="one target")
    parser.add_argument("--no-save", action="store_true", help="do not add to benchmarks/results/fuzz.csv")
    args = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        chosen = [target for target in targets(Path(folder)) if args.only in (None, target.name)]
        weights = sum(target.weight for target in chosen)
        _limit()
        for target in chosen:
            cases = max(1, args.cases * target.weight // weights)
            row = fuzz(target, cases, args.seed)
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            failures += row["failures"] != 0
            if not args.no_save:
                save(row)
    return 1 if failures else 0


def save(row: dict[str, object]) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from common import RESULTS, append_rows

    append_rows(RESULTS / "fuzz.csv", [row])


def fuzz(target: Target, cases: int, seed: int) -> dict[str, object]:
    """Try ``cases`` of one target; returns its row of the table."""
    rng, accepted, failures = Random(f"{target.name} {seed}"), 0, Counter[str]()
    outcome(target, target.draw(Random(0)))  # what is compiled at its first use is no hang
    start = time.monotonic()
    for _ in range(cases):
        case = target.draw(rng)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        good, error = outcome(target, case)
        signal.setitimer(signal.ITIMER_REAL, 0)
        accepted += good
        if error is not None:
            _note(failures, error, case)
    failed = failures.total()
    return {
        "target": target.name,
        "cases": cases,
        "accepted": accepted,
        "refused": cases - accepted - failed,
        "failures": failed,
        "seconds": round(time.monotonic() - start, 1),
        "seed": seed,
    }


def _note(failures: Counter[str], error: BaseException, case: object) -> None:
    last = traceback.extract_tb(error.__traceback__)[-1]
    kind = f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}"
    failures[kind] += 1
    if failures[kind] <= _SHOWN:
        print(f"FAILURE: {kind}: {str(error)[:300]}\n  {repr(case)[:600]}", flush=True)


def _limit() -> None:
    """A case that would take the machine's memory or time gets an exception instead."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))

    def too_slow(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"longer than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_slow)


if __name__ == "__main__":
    sys.exit(main())
