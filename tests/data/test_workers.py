"""Workers die at any moment, of anything: the training and its stream of batches are the same."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import pytest
import torch

from sam_ds.config.errors import RankError, UserError
from sam_ds.config.schema import EvalConfig
from sam_ds.data import workers
from sam_ds.data.index import open_index
from sam_ds.data.loader import EvalLoader
from sam_ds.data.workers import make_ahead
from sam_ds.types import SegmentBatch
from tests.data.streams import DATA, SIDE, content_of, stream_of, train_loader


def test_killed_workers_change_nothing(drawn: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They die at any moment, the training computing: no exception reaches it, and the stream is the same."""
    num_steps, killed, done = 200, [], threading.Event()

    def kill() -> None:
        rng, before = random.Random(0), 0
        while not done.wait(rng.uniform(0, 0.02)):
            if len(seen) >= before + 3:  # each batch is made in the end
                before = len(seen)
                killed.append(rng.choice(_children()))
                os.kill(killed[-1], signal.SIGKILL)

    expected = stream_of(train_loader(drawn / "train", replace(DATA, workers=0)), num_steps)
    steps = train_loader(drawn / "train").steps(0)
    seen, matrix = [content_of(next(steps)[0])], torch.rand(128, 128)
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for _ in range(num_steps - 1):
            for _ in range(5):
                matrix = torch.tanh(matrix @ matrix)  # a training step
            seen.append(content_of(next(steps)[0]))
    finally:
        done.set()
        killer.join()
    assert seen == expected
    warned = [r.getMessage() for r in caplog.records if "another goes on" in r.getMessage()]
    assert 10 < len(warned) <= len(killed)
    assert all(re.fullmatch(r"a loader process \(\d+\) was killed by SIGKILL; another .*", line) for line in warned)


def _children() -> list[int]:
    """Without touching what multiprocessing knows of them: that is the training's."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def test_batches_are_pinned_by_a_thread(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a GPU: in order, to the end, with the errors of the workers, and left in the middle."""
    pinned: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(SegmentBatch, "pin_memory", lambda batch: pinned.append(threading.get_ident()) or batch)
    expected = stream_of(train_loader(drawn / "train", replace(DATA, workers=0)), 6)
    assert stream_of(train_loader(drawn / "train"), 6) == expected
    assert len(pinned) >= 6 and threading.get_ident() not in pinned and not multiprocessing.active_children()
    index = open_index(drawn / "train")
    assert len(list(EvalLoader(index, DATA, SIDE, EvalConfig(batch=1), 0, 1))) == 12
    monkeypatch.setattr(Path, "read_bytes", raiser(errno.EMFILE))
    with pytest.raises(UserError, match="ulimit"):
        next(train_loader(drawn / "train").steps(0))


def raiser(number: int) -> Callable[[Path], bytes]:
    def read_bytes(path: Path) -> bytes:
        raise OSError(number, os.strerror(number))

    return read_bytes


def test_killed_in_evaluation(drawn: Path) -> None:
    index = open_index(drawn / "train")
    expected, seen = ([], [])
    for data, found in ((replace(DATA, workers=0), expected), (DATA, seen)):
        for batch in EvalLoader(index, data, SIDE, EvalConfig(batch=1), 0, 1):
            found.append(content_of(batch))
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)
    assert seen == expected and len(seen) == 12


@pytest.mark.parametrize("end", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(7)])
def test_a_batch_that_kills_ends_the_run(end: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    def make(key: int) -> int:
        if key == 5:
            end()
        return key

    made = make_ahead(make, iter(range(10)), 2)
    assert list(islice(made, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(
        RankError, match=r"5 loader processes in a row died .* (by SIGKILL|with code 7): .*data.workers"
    ):
        next(made)
    assert len(caplog.records) == workers._DEATHS - 1 and not multiprocessing.active_children()


def test_deaths_with_progress_are_borne(tmp_path: Path) -> None:
    """Every batch costs as many deaths as it may."""

    def make(key: int) -> int:
        for life in range(workers._DEATHS - 1):
            marker = tmp_path / f"{key}-{life}"
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return key

    assert list(make_ahead(make, iter(range(6)), 2)) == list(range(6))


def test_death_within_a_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a worker was about to hand over is made again."""
    send = workers._send

    def dying(channel, made) -> None:
        try:
            (tmp_path / str(made)).touch(exist_ok=False)
        except FileExistsError:
            send(channel, made)
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(workers, "_send", dying)
    assert list(make_ahead(int, iter(range(8)), 3)) == list(range(8))


def test_what_a_dead_worker_sent_is_used(tmp_path: Path) -> None:
    def make(key: int) -> tuple[int, int]:
        if key == 4:
            os.kill(os.getpid(), signal.SIGKILL if os.getpid() == first else 0)
        return key, os.getpid()

    first = 0
    made = make_ahead(make, count(), 1)
    first = next(made)[1]
    time.sleep(0.5)  # four more are made
    os.kill(first, signal.SIGKILL)
    rest = list(islice(made, 8))
    assert [key for key, _ in rest] == list(range(1, 9))
    assert [pid == first for _, pid in rest] == [True] * 4 + [False] * 4
    made.close()


def test_workers_of_a_killed_training_end(drawn: Path) -> None:
    code = f"""
import multiprocessing, time
from sam_ds.config.schema import DataConfig, Recipe
from sam_ds.data.index import open_index
from sam_ds.data.loader import TrainLoader
from sam_ds.data.sampler import Share
recipe, index = Recipe("t", data=DataConfig(workers=2)), open_index({str(drawn / "train")!r})
loaders = [TrainLoader(index, recipe, {SIDE}, Share(2, 1, 0, 1), None).steps(0) for _ in range(2)]
for steps in loaders:
    next(steps)
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""
    training = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert training.stdout
    pids = [int(pid) for pid in training.stdout.readline().split()]
    assert len(pids) == 4
    training.kill()
    training.communicate()
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # where nobody adopts orphans they stay in the table


def test_other_faults_of_a_worker_are_seen_whole() -> None:
    def make(key: int) -> int:
        return 1 // (key - 3)

    made = make_ahead(make, count(), 1)
    assert list(islice(made, 3)) == [-1, -1, -1]
    with pytest.raises(RuntimeError, match=r"(?s)a loader process failed:.*ZeroDivisionError"):
        next(made)


def test_memory_and_files_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def memory(key: int) -> int:
        raise MemoryError

    def no_file(name: str) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with pytest.raises(RankError, match=r"out of memory: lower data.workers"):
        next(make_ahead(memory, count(), 1))
    monkeypatch.setattr(os, "memfd_create", no_file)
    with pytest.raises(RankError, match="Too many open files: raise ulimit -n"):
        next(make_ahead(int, count(), 1))


def test_workers_can_be_spawned(drawn: Path, tmp_path: Path) -> None:
    script = tmp_path / "spawned.py"
    script.write_text(f"""
import multiprocessing
from itertools import islice
from sam_ds.config.schema import DataConfig, Recipe
from sam_ds.data.index import open_index
from sam_ds.data.loader import TrainLoader
from sam_ds.data.sampler import Share

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    recipe, index = Recipe("t", data=DataConfig(workers=1)), open_index({str(drawn / "train")!r})
    for batches in islice(TrainLoader(index, recipe, {SIDE}, Share(2, 1, 0, 1), None).steps(0), 3):
        print(*batches[0].positions.tolist())
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("0 1\n2 3\n4 5\n", "", 0)
