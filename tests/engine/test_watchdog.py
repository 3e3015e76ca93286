"""Who is in trouble, told from what is heard of the ranks; and a job that ends when one of its ranks hangs."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from sam_ds.config.errors import TRY_AGAIN
from sam_ds.engine.watchdog import Beat, Judge
from tests.engine import hanging


def judged(words: dict[int, list[tuple[int, int]]], seconds: int, waiting: tuple[int, ...] = ()) -> str:
    """The verdict after words (count, marks) of ranks, one a second; the last is repeated."""
    judge = Judge(silence=5, timeout=20)
    for now in range(seconds):
        for rank, said in words.items():
            count, marks = said[min(now, len(said) - 1)]
            judge.hear(
                rank, Beat(count, marks, f"place {marks}", rank in waiting, f"host-{rank}", 100 + rank), float(now)
            )
    return judge.verdict(float(seconds))


ALIVE = [(count, count) for count in range(1, 100)]


def test_ranks_that_go_on_are_left_alone() -> None:
    assert judged({0: ALIVE, 1: ALIVE}, 60) == ""


def test_a_judge_that_was_away_itself_forgives() -> None:
    judge = Judge(silence=5, timeout=20)
    judge.hear(0, Beat(1, 1, "place 1", False, "host", 1), 0.0)
    judge.forgive(100.0)
    assert judge.verdict(104.0) == "" != judge.verdict(106.0)


def test_before_the_training_nobody_is_late() -> None:
    """A model is built for an hour."""
    waiting = [(count, 0) for count in range(1, 100)]
    assert judged({0: ALIVE, 1: waiting}, 60) == ""


@pytest.mark.parametrize(("last", "late"), [(100, False), (10, True)])
def test_who_works_while_others_wait_is_late_when_it_does_not_get_on(last: int, late: bool) -> None:
    judge = Judge(silence=5, timeout=20)
    for now in range(60):
        tar = min(now, last)
        judge.hear(0, Beat(now, 0, f"tar {tar}", False, "host-0", 100, signs=tar), float(now))
        judge.hear(1, Beat(now, 0, "start-up", False, "host-1", 101, meets=True), float(now))
    verdict = "rank 0 (host-0) shows no progress for more than 20 s, last at tar 10"
    assert judge.verdict(60.0) == (verdict if late else "")


def test_a_silent_process_is_named() -> None:
    verdict = judged({0: ALIVE, 1: ALIVE[:10]}, 18)
    assert verdict.startswith("rank 1 (host-1, process 101) has not been heard of for 9 s, last at place 10")


def test_the_rank_that_is_behind_is_named_not_those_that_wait() -> None:
    words = {rank: [(count, min(count, 12 - (rank == 1))) for count in range(1, 100)] for rank in range(3)}
    assert judged(words, 30) == ""
    assert judged(words, 40) == "rank 1 (host-1) is stuck after place 11 for more than 20 s"


def test_where_all_are_at_one_place_all_are_named() -> None:
    words = {rank: [(count, min(count, 12)) for count in range(1, 100)] for rank in range(2)}
    assert "all ranks are stuck after place 12" in judged(words, 40)
    assert judged(words, 40, waiting=(0,)).startswith("rank 1 (host-1) is stuck after place 12")  # 0 is in a collective


def begun(ranks: Callable[[int, int, Path], None], folder: Path) -> list[SpawnProcess]:
    """Two processes, when they are at it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=ranks, args=(rank, port, folder), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    until = time.monotonic() + 120
    while not (folder / "begun").exists():
        assert time.monotonic() < until and all(process.is_alive() for process in processes)
        time.sleep(0.05)
    return processes


def test_ranks_wait_for_long_work_for_as_long_as_it_gets_on(tmp_path: Path) -> None:
    processes = begun(hanging.index, tmp_path)
    time.sleep(hanging.GROUPS_WAIT.total_seconds() + 2)
    (tmp_path / "done").touch()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]


def test_a_process_that_ends_does_not_abort_in_the_store(tmp_path: Path) -> None:
    processes = begun(hanging.leave, tmp_path)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]


def test_long_work_that_hangs_is_named(tmp_path: Path) -> None:
    processes = begun(hanging.index, tmp_path)
    (tmp_path / "hang_0").touch()
    for process in processes:
        process.join(60)
    assert processes[0].exitcode == TRY_AGAIN
    assert processes[1].exitcode  # the store may have gone before its own watchdog ended it
    told = (tmp_path / "stacks_rank_00000.txt").read_text()
    assert re.match(r"rank 0 \(.*\) shows no progress for more than 4 s, last at indexing a tar\n", told), told


@pytest.mark.parametrize(("who", "how"), [(0, "stopped"), (1, "stopped"), (1, "hangs")])
def test_the_job_ends_when_a_rank_hangs_and_says_which(who: int, how: str, tmp_path: Path) -> None:
    processes = begun(hanging.train, tmp_path)
    began = time.monotonic()
    if how == "stopped":
        os.kill(processes[who].pid or 0, signal.SIGSTOP)
    else:
        (tmp_path / f"hang_{who}").touch()
    other = processes[1 - who]
    other.join(60)
    assert other.exitcode == TRY_AGAIN, time.monotonic() - began
    processes[who].join(15)
    woken = processes[who].exitcode is not None
    processes[who].kill()
    assert woken, "the launcher would wait for it"
    told = (tmp_path / f"stacks_rank_{1 - who:05d}.txt").read_text()
    assert told.startswith(f"rank {who} "), told
    assert ("stuck after a step" in told) == (how == "hangs")
    assert "hanging.py" in told  # the stack of the main thread
