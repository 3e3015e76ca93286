"""Saves that are killed, files that change, disks that fail."""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.injection import ALL, Fault
from faults.lab import Lab, Row, counted, going_on_from, share
from faults.lives import copy, live, newest, survive


def killed_saves(lab: Lab) -> Iterator[Row]:
    """At every operation on the files of the checkpoint of step 4, on either rank."""
    ended, diverged, kills = [], [], 0
    for rank in range(2):
        for operation in itertools.count():
            if operation >= lab.trials * 2:  # a small sample
                break
            rng = random.Random(f"{rank} {operation}")
            fault = Fault("kill", rank, 4, "save", operation, delay=rng.choice((0.0, rng.uniform(0, 0.01))))
            training = lab.training()
            lives = survive(training, [fault])
            if not lives[0].fault:
                lab.forget(training)
                break
            kills += 1
            ended.append(lab.held(lives[-1].finished, fault, lives[-1]))
            diverged.append(not lab.exact(training))
    name = "kill -9 at every file operation of a save"
    yield from counted(name, {"went on by itself": ended})
    yield Row(name, "silent divergence", share(diverged), "0 %", not any(diverged), kills)


def flip(path: Path) -> None:
    """One bit, anywhere."""
    content = bytearray(path.read_bytes())
    place = random.Random(path.name).randrange(len(content))
    content[place] ^= 1 << place % 8
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncate": lambda path: os.truncate(path, path.stat().st_size // 2),
    "flip": flip,
    "zero": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "delete": lambda path: path.unlink(),
    "empty": lambda path: os.truncate(path, 0),
}


def damaged_files(lab: Lab) -> Iterator[Row]:
    source = lab.training()
    live(source, Fault("term", ALL, 8))
    at = newest(source)
    names = sorted(path.name for path in (source.output / "checkpoints" / f"step_{at:08d}").iterdir())
    refused, back, exact = [], [], []
    cases = list(itertools.product(names, DAMAGES))
    for name, damage in cases if lab.trials >= len(names) else cases[:: len(cases) // lab.trials]:
        training = copy(source, lab.training().output)
        DAMAGES[damage](training.output / "checkpoints" / f"step_{at:08d}" / name)
        life = live(training)
        refused.append(bool(re.search(rf"damaged, set aside: .*{re.escape(name)}", life.said)))
        whole = life.finished and 0 < going_on_from(life) < at
        back.append(lab.held(whole, (damage, name), life))
        exact.append(lab.exact(training))
    name = "each file of a checkpoint truncated, flipped, zeroed, deleted, emptied"
    yield from counted(name, {"refused by name": refused, "gone back from": back, "ended bit-exact": exact})


def full_disks(lab: Lab) -> Iterator[Row]:
    small = lab.root / "small"
    small.mkdir(exist_ok=True)
    name = "a full disk (tmpfs)"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150m", "tmpfs", str(small)], check=False).returncode:
        yield Row(name, "not tried: this machine lets nobody mount", "", "100 %", False, 0)
        return

    def full(rng: random.Random) -> Fault:
        return Fault("full_disk", 0, rng.randrange(2, 7), "forward", rng.randrange(12_000_000))

    try:
        yield from _failing_saves(lab, small, name, full)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def failing_disks(lab: Lab) -> Iterator[Row]:
    def fault(rng: random.Random) -> Fault:
        return Fault("io_error", rng.randrange(2), rng.choice((4, 6)), "save", rng.randrange(8))

    yield from _failing_saves(lab, lab.root, "an I/O error in a save", fault)


def _failing_saves(lab: Lab, folder: Path, name: str, fault: Callable[[random.Random], Fault]) -> Iterator[Row]:
    ended, exact, alerts = [], [], []
    for seed in range(lab.trials):
        training = lab.training(folder)
        met = fault(random.Random(seed))
        lives = survive(training, [met])
        ended.append(lab.held(lives[-1].finished and len(lives) == 1, met, lives[0]))
        alerts.append(lives[0].said.count("NOT SAVED"))
        exact.append(lab.exact(training))
        lab.forget(training)
    yield from counted(name, {"the training went on": ended, "ended bit-exact": exact})
    yield Row(name, "checkpoints not saved, with one line each", str(sum(alerts)), "", True, len(alerts))
