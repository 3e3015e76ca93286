"""A rank that hangs, is stopped, or whose machine is gone: noticed by the others, named, and the job ended.

Without it the others wait in a collective for as long as its timeout, and then say that they waited, not for whom.
Every rank's watchdog, in threads of its own, tells the common store how far its rank is. Rank 0's looks at all of
them; the others look whether rank 0's store still answers. What is found wrong is told to all, every rank writes where
all of its threads are, and ends with ``TRY_AGAIN``, so that the launcher ends the job and its scheduler restarts it.
One that is stopped is woken to do so too, by those on its machine.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from sam_ds.config.errors import TRY_AGAIN, LostRanksError
from sam_ds.engine import distributed
from sam_ds.engine.neighbours import Neighbours

_SILENCE = 120.0  # seconds without a word of a process, at most; a stuck rank is given the whole timeout
_INTERVAL = 1.0  # seconds between two words, at most
_LAST_WORD = 5.0  # seconds in which the store should answer one
_VERDICT = "sam_ds/watchdog/verdict"

T = TypeVar("T")


@dataclass(frozen=True)
class Beat:
    """A rank's word."""

    count: int  # of its words
    marks: int  # places it has passed: every rank passes the same ones, in the same order
    place: str  # the last of them
    waits: bool  # its main thread is in a collective
    host: str
    pid: int
    signs: int = 0  # of progress in long work of its own
    meets: bool = False  # its main thread waits in ``meet``


class Judge:
    """Decides from what is heard of the ranks, and when, which of them is in trouble. ``now`` is in seconds."""

    def __init__(self, silence: float, timeout: float) -> None:
        self._silence, self._timeout = silence, timeout
        self._beats: dict[int, Beat] = {}
        self._heard: dict[int, float] = {}  # when a rank's word was last another
        self._moved: dict[int, float] = {}  # when a rank last passed a place, or got on with its work

    def hear(self, rank: int, beat: Beat, now: float) -> None:
        before = self._beats.get(rank)
        if before is None or before.count != beat.count:
            self._heard[rank] = now
        if before is None or (before.marks, before.signs, before.meets) != (beat.marks, beat.signs, beat.meets):
            self._moved[rank] = now
        self._beats[rank] = beat

    def forgive(self, now: float) -> None:
        """Nobody is late yet: the judge itself was away."""
        self._heard = dict.fromkeys(self._heard, now)
        self._moved = dict.fromkeys(self._moved, now)

    def verdict(self, now: float) -> str:
        """Who is in trouble, where, and how; "" if nobody is."""
        for rank, heard in self._heard.items():
            if now - heard > self._silence:
                beat = self._beats[rank]
                return (
                    f"rank {rank} ({beat.host}, process {beat.pid}) has not been heard of for {now - heard:.0f} s, "
                    f"last at {beat.place}: it was stopped, or its machine or network is gone"
                )
        if any(now - moved <= self._timeout for moved in self._moved.values()):
            return ""
        late = [rank for rank, beat in self._beats.items() if not beat.meets]
        return self._missed(late) if 0 < len(late) < len(self._beats) else self._stuck()

    def _missed(self, late: list[int]) -> str:
        """Of ranks that the others wait for while they do long work."""
        place = self._beats[late[0]].place
        return f"{self._named(late)} shows no progress for more than {self._timeout:.0f} s, last at {place}"

    def _stuck(self) -> str:
        """Of ranks between two places that all pass; "" before all have passed the first."""
        first = min((beat.marks for beat in self._beats.values()), default=0)
        if not first:
            return ""
        behind = [rank for rank, beat in self._beats.items() if beat.marks == first]
        stuck = [rank for rank in behind if not self._beats[rank].waits] or behind
        place = f"stuck after {self._beats[stuck[0]].place} for more than {self._timeout:.0f} s"
        if len(stuck) == len(self._beats) > 1:
            return f"all ranks are {place}: their network hangs?"
        return f"{self._named(stuck)} is {place}"

    def _named(self, ranks: list[int]) -> str:
        return ", ".join(f"rank {rank} ({self._beats[rank].host})" for rank in ranks)


class Watchdog:
    """One a process. ``mark`` and ``progress`` are free; the rest happens in two threads."""

    def __init__(self) -> None:
        self._marks, self._signs, self._place = 0, 0, "start-up"
        self._meetings, self._meets = 0, False
        self._verdict = ""
        self._answered = 0.0  # when the store last did
        self._ended: threading.Event | None = None
        self._talking: threading.Thread | None = None

    def mark(self, place: str) -> None:
        """The main thread has come to ``place``. From the first mark of every rank on, they are timed."""
        self._place = place
        self._marks += 1

    def marked(self, items: Iterable[T], place: str) -> Iterator[T]:
        """The items of long work, a mark before each."""
        for item in items:
            self.mark(place)
            yield item

    def progress(self, place: str) -> None:
        """Long work that not every rank does gets on: the main thread has come to ``place``."""
        self._place = place
        self._signs += 1

    def meet(self) -> None:
        """Wait for all ranks, with no timeout of a group: as long as one that is awaited gets on. Collective.

        Raises:
            LostRanksError: rank 0 has ended.
        """
        self._meetings += 1
        key, store, pause = f"sam_ds/watchdog/meeting/{self._meetings}", _get_default_store(), 0.001
        self._meets = True
        try:
            store.add(key, 1)
            while store.add(key, 0) < distributed.world_size():
                time.sleep(pause)
                pause = min(2 * pause, _INTERVAL)
        except RuntimeError as error:
            raise LostRanksError(f"rank 0 has gone ({str(error).splitlines()[0]})") from error
        self._meets = False

    def start(self, timeout: float, stacks: Path) -> None:
        """Begin to watch. Collective.

        Args:
            timeout: seconds that a rank may stay at one place. A process of which nothing at all is heard is given
                up sooner, after two minutes at most.
            stacks: the folder for ``stacks_rank_….txt``.
        """
        self.stop()
        self._marks, self._verdict = 0, ""
        self._ended, self._answered = threading.Event(), time.monotonic()
        silence = min(_SILENCE, timeout)
        interval = min(_INTERVAL, timeout / 5)
        # A client of its own: the main thread may be waiting in the group's.
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=silence),
        )
        self._tell(store, 0)
        neighbours = Neighbours()  # collective: from here on every rank's word is there
        judge = Judge(silence, timeout) if distributed.is_main() else None
        talk = (store, judge, interval, self._ended)
        self._talking = threading.Thread(target=self._talk, args=talk, name="watchdog", daemon=True)
        self._talking.start()
        wait = (silence, interval, stacks, neighbours, self._ended)
        threading.Thread(target=self._wait, args=wait, daemon=True).start()

    def stop(self) -> None:
        """Watch no longer; from here on the ranks end on their own."""
        if self._ended is not None:
            self._ended.set()
            self._ended = None
        if self._talking is not None:
            # Where the interpreter ends while a thread is in a call of the store, torch aborts the process.
            self._talking.join(_LAST_WORD)
            self._talking = None

    def _talk(self, store: dist.TCPStore, judge: Judge | None, interval: float, ended: threading.Event) -> None:
        """May hang with the store: ``_wait`` notices."""
        count, last = 0, time.monotonic()
        while not ended.wait(interval):
            count += 1
            if judge and time.monotonic() - last > 5 * interval:  # it was itself stopped: what it heard is old
                judge.forgive(time.monotonic())
            last = time.monotonic()
            with contextlib.suppress(RuntimeError):  # of the store: it answers again, or it is given up
                self._tell(store, count)
                if store.check([_VERDICT]):
                    self._verdict = self._verdict or store.get(_VERDICT).decode()
                elif self._verdict:  # of rank 0, which was silent: it is woken, and its store answers again
                    store.set(_VERDICT, self._verdict)
                found = _judge(store, judge) if judge else ""
                if found:
                    store.set(_VERDICT, found)
                    self._verdict = found
                self._answered = time.monotonic()

    def _tell(self, store: dist.TCPStore, count: int) -> None:
        place, waits = self._place, _in_a_collective()
        host, pid = socket.gethostname(), os.getpid()
        beat = Beat(count, self._marks, place, waits, host, pid, self._signs, self._meets)
        store.set(_key(distributed.rank()), json.dumps(vars(beat)))

    def _wait(
        self, silence: float, interval: float, stacks: Path, neighbours: Neighbours, ended: threading.Event
    ) -> None:
        last = time.monotonic()
        while not ended.wait(interval):
            now = time.monotonic()
            if now - last > 2 * interval + silence / 2:  # it was itself stopped, and the store had no time to answer
                self._answered = now
            last = now
            quiet = now - self._answered
            if not self._verdict and quiet > silence:
                self._verdict = (
                    f"rank 0 ({os.environ.get('MASTER_ADDR')}) has not been heard of for {quiet:.0f} s, "
                    "nor the store that it keeps"
                )
            if self._verdict:
                neighbours.wake()
                # Its storage may be what hangs. With the first rank that ends, others end in errors of their network.
                threading.Thread(target=_write_stacks, args=(self._verdict, stacks), daemon=True).start()
                time.sleep(3 * interval)
                os._exit(TRY_AGAIN)


def _judge(store: dist.TCPStore, judge: Judge) -> str:
    ranks = range(distributed.world_size())
    for rank, word in zip(ranks, store.multi_get([_key(rank) for rank in ranks]), strict=True):
        judge.hear(rank, Beat(**json.loads(word)), time.monotonic())
    return judge.verdict(time.monotonic())


def _key(rank: int) -> str:
    return f"sam_ds/watchdog/{rank}"


def _in_a_collective() -> bool:
    """Whether the main thread is waiting for other ranks, as far as its Python code tells."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(("torch.distributed", "deepspeed.comm")):
            return True
        frame = frame.f_back
    return False


def _write_stacks(verdict: str, folder: Path) -> None:
    """Say what is wrong, and write where this rank's threads are, whatever its main thread does."""
    rank = distributed.rank()
    path = folder / f"stacks_rank_{rank:05d}.txt"
    print(f"sam-ds: watchdog: {verdict}; rank {rank}'s stacks: {path}; ending the job", file=sys.stderr, flush=True)
    try:
        with path.open("w", encoding="utf-8") as file:
            file.write(f"{verdict}\n{socket.gethostname()}, rank {rank}, {time.strftime('%F %T')}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
    except OSError:
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)


watchdog = Watchdog()
"""Of this process."""
