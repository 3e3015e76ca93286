"""Being asked to stop, by a signal to any rank or to the launcher: all ranks agree, and none stops on its own.

The launcher hands a signal to its ranks one after another, so a rank that stopped at once would leave the others
waiting in a collective. A signal only sets a flag here. Whoever looks passes it on through the ranks' common store, so
that long work between steps can end early; the flag that all ranks agree on is reduced beside every step.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from sam_ds.config.signals import STOP
from sam_ds.engine import distributed

_KEY = "sam_ds/stop"

T = TypeVar("T")


class Preempted(Exception):
    """All ranks have agreed to stop."""


class StopFlag:
    """Whether this job was asked to stop. One a process; of the main thread."""

    def __init__(self) -> None:
        self._asked = False
        self._interrupted = False  # from the keyboard
        self._launchers: list[int] = []
        self._told = False
        self._votes = torch.zeros(2)
        self._reduction: Any = None

    def listen(self) -> None:
        """Take the signals; a second interrupt from the keyboard ends the process as usual."""
        for number in STOP:
            signal.signal(number, self._note)
        self._launchers = _launchers()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        self._asked = True

    def seen(self) -> bool:
        """Whether any rank was asked, as far as this one can tell. Not alike on all ranks at the same moment."""
        if self._asked and not self._told:
            _get_default_store().set(_KEY, "")
            self._told = True
        self._asked = self._asked or _get_default_store().check([_KEY])
        return self._asked

    def ask(self, busy: bool = False) -> None:
        """Begin to ask all ranks; ``answer`` has what they say. Collective.

        Args:
            busy: what else all ranks are to know of each other.
        """
        # On one machine a SIGTERM ends DeepSpeed's launcher and reaches nobody else.
        self._asked = self._asked or _launchers()[: len(self._launchers)] != self._launchers
        self._votes = torch.tensor([self._asked, busy]).float()  # the store is not asked: every step comes here
        group = distributed.control_group()
        self._reduction = dist.all_reduce(self._votes, dist.ReduceOp.MAX, group=group, async_op=True)

    def answer(self) -> bool:
        """Raise Preempted on every rank if any had been asked to stop when ``ask`` was called. Collective.

        Returns whether any was busy.
        """
        self._reduction.wait()
        stopping, busy = self._votes.tolist()
        if stopping:
            raise Preempted
        return bool(busy)

    def check(self) -> None:
        """``ask`` and ``answer`` at once."""
        self.ask()
        self.answer()

    def until_seen(self, items: Iterable[T]) -> Iterator[T]:
        """The items, up to where this rank sees that it should stop."""
        for item in items:
            if self.seen():
                return
            yield item


def _launchers() -> list[int]:
    """The processes of DeepSpeed's launcher above this one, the nearest first."""
    found: list[int] = []
    parent = os.getppid()
    while len(found) < 2 and (above := _launcher_above(parent)):
        found.append(parent)
        parent = above
    return found


def _launcher_above(pid: int) -> int:
    """The parent of ``pid`` if that is a process of the launcher, else 0."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    ours = any(word == b"deepspeed.launcher.launch" or word.endswith(b"/deepspeed") for word in words)
    return int(fields[1]) if ours else 0


stop = StopFlag()
