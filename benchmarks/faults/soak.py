"""Ten minutes of a training's life, with a fault every few seconds, and nobody to help."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from statistics import median

from faults.disks import DAMAGES
from faults.injection import ALL, Fault
from faults.lab import TIMEOUT, Lab, Row
from faults.lives import Life, Training, live, newest

from sam_ds.storage import checkpoints
from sam_ds.storage.checkpoints import step_folder
from sam_ds.tracking.journal import read_lines


def soak(lab: Lab) -> Iterator[Row]:
    rng = random.Random(0)
    training = lab.training(
        settings=("train.steps=100000", "train.save_every=10", "data.workers=1"),
        options=("--timeout", str(TIMEOUT)),
    )
    began, faults, dead = time.time(), Counter[str](), 0
    while time.time() - began < lab.soak:
        fault = draw(rng)
        faults[fault.what] += 1
        life = live(training, fault, most=30.0)
        dead += not went_on(life)
        if rng.random() < 0.2 and newest(training):
            damage(training, rng)
            faults["damage"] += 1
    seconds = time.time() - began
    kept, step_seconds = newest(training), seconds_of_a_step(training)
    lab.forget(training)
    name = f"{lab.soak / 60:g} minutes of random faults, one every 8 to 25 s of training"
    yield Row(name, "manual interventions", str(dead), "0", dead == 0, sum(faults.values()))
    drawn = ", ".join(f"{count} {what}" for what, count in sorted(faults.items()))
    yield Row(name, "faults", drawn, "", True, sum(faults.values()))
    figure = "effective time (steps that count × their median time ÷ all time)"
    yield Row(name, figure, f"{100 * kept * step_seconds / seconds:.0f} %", "", True, sum(faults.values()))


def draw(rng: random.Random) -> Fault:
    what = rng.choice(("kill", "kill", "term", "stop", "kill_worker", "io_error"))
    if what == "io_error":
        return Fault(what, rng.randrange(2), 0, "save", rng.randrange(20, 60))
    rank = ALL if what == "term" and rng.random() < 0.5 else rng.randrange(2)
    return Fault(what, rank, 0, "start", delay=rng.uniform(8, 25))


def went_on(life: Life) -> bool:
    """Whether the next start can do without a person: no user's mistake was reported."""
    return 2 not in life.codes


def damage(training: Training, rng: random.Random) -> None:
    """A file of the newest checkpoint, where there is another to go back to."""
    found = checkpoints.find(training.output / "checkpoints")
    if len(found) > 1:
        path = rng.choice(sorted(step_folder(found[-1].parent, newest(training)).iterdir()))
        DAMAGES[rng.choice(sorted(DAMAGES))](path)


def seconds_of_a_step(training: Training) -> float:
    lines = [line for line, _ in read_lines(training.output / "metrics.jsonl") if "time/step" in line]
    parts = ("time/data", "time/forward", "time/backward", "time/step")
    return median(sum(line[part] for part in parts) for line in lines) if lines else 0.0
