"""Faults, as a rank meets them: planted in its process before the training starts.

The training itself tells where it is (the watchdog's marks) and Python tells what it does with files (audit events),
so nothing in it knows of faults.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ALL = -1  # ranks
# Where in a step a fault comes: right after the mark with which the part before it ends.
PARTS = {"forward": "data", "backward": "forward", "step": "backward", "data": "step"}


@dataclass(frozen=True)
class Fault:
    """What happens, to whom, and when. Only in the life of a training that it is given to."""

    what: str  # kill | stop | hang | term | kill_worker | nan | flip | full_disk | io_error
    rank: int = 0  # or ALL
    step: int = 0  # index of the step; of when=save the checkpoint's, 0: any
    when: str = "forward"  # a name of PARTS | evaluation | save | start
    operation: int = 0  # of when=save: before which of the rank's operations on the checkpoint's files; of
    # when=evaluation: before which of its batches; of what=full_disk: bytes that are left
    delay: float = 0.0  # seconds after that moment


class Injector:
    """One fault in one rank."""

    def __init__(self, fault: Fault, rank: int, output: Path) -> None:
        self.fault, self._output = fault, output
        self._mine = fault.rank in (ALL, rank)
        self._operations = 0
        self._done = False

    def arm(self) -> None:
        """Wait for the moment."""
        from sam_ds.engine.watchdog import watchdog

        if self.fault.when == "start":
            self._fire()
            return
        if self.fault.when == "save":
            sys.addaudithook(self._at_a_file)
            return
        tell = watchdog.mark

        def mark(place: str) -> None:
            tell(place)
            self._at(place)

        watchdog.mark = mark  # type: ignore[method-assign]

    def _at(self, place: str) -> None:
        fault = self.fault
        if fault.when == "evaluation":
            expected = "a batch of the evaluation"
        else:
            # What comes in a step's data comes after the step before it.
            step = fault.step - (fault.when == "data")
            expected = f"the end of {PARTS[fault.when]} of step {step}"
        if place != expected:
            return
        if self.fault.when != "evaluation" or self._operations == self.fault.operation:
            self._fire()
        self._operations += 1

    def _at_a_file(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            return
        name = f"/step_{self.fault.step:08d}" if self.fault.step else "/step_"
        if name not in str(args[0]) or self._done:
            return
        if self._operations == self.fault.operation:
            self._fire()
        self._operations += 1

    def _fire(self) -> None:
        if self._done or not self._mine:
            return
        self._done = True
        work = _WORK[self.fault.what]
        if self.fault.delay:
            threading.Timer(self.fault.delay, self._note_and, (work,)).start()
        else:
            self._note_and(work)

    def _note_and(self, work: Callable[[Fault, Path], None]) -> None:
        self._output.with_suffix(".fault").write_text(str(time.time()))
        work(self.fault, self._output)


def _signal(number: signal.Signals) -> Callable[[Fault, Path], None]:
    return lambda fault, output: os.kill(os.getpid(), number)


def _hang(fault: Fault, output: Path) -> None:
    time.sleep(3600)


def _kill_worker(fault: Fault, output: Path) -> None:
    workers = multiprocessing.active_children()
    assert workers, "the training has no workers"
    os.kill(random.Random(fault.step).choice(workers).pid or 0, signal.SIGKILL)


def _nan(fault: Fault, output: Path) -> None:
    """This rank's next loss is not finite."""
    from sam_ds.tasks.segment_images import SegmentImages

    forward = SegmentImages.forward

    def spoilt(self: Any, *args: Any) -> Any:
        SegmentImages.forward = forward  # type: ignore[method-assign]
        loss, logs = forward(self, *args)
        return loss * torch.nan, logs

    SegmentImages.forward = spoilt  # type: ignore[method-assign]


def _flip(fault: Fault, output: Path) -> None:
    """A bit of a weight changes in this rank's memory."""
    import gc

    from sam_ds.modeling.sam.sam import Sam

    model = next(found for found in gc.get_objects() if isinstance(found, Sam))
    weight = max(model.parameters(), key=torch.Tensor.numel).data.view(-1)
    weight.view(torch.int32)[fault.operation % weight.numel()] ^= 1 << 20


def _full_disk(fault: Fault, output: Path) -> None:
    """The disk has little space left, until a file is deleted two seconds later."""
    stat = os.statvfs(output)
    left = fault.operation
    # A save may have taken the space meanwhile.
    with suppress(OSError), (output.parent / "ballast").open("wb") as file:
        file.write(bytes(max(0, stat.f_bavail * stat.f_frsize - left)))


def _io_error(fault: Fault, output: Path) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


_WORK: dict[str, Callable[[Fault, Path], None]] = {
    "kill": _signal(signal.SIGKILL),
    "stop": _signal(signal.SIGSTOP),
    "term": _signal(signal.SIGTERM),
    "hang": _hang,
    "kill_worker": _kill_worker,
    "nan": _nan,
    "flip": _flip,
    "full_disk": _full_disk,
    "io_error": _io_error,
}
