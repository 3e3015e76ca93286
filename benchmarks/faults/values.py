"""Numbers and pictures that are not what they should be."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from faults.injection import Fault
from faults.lab import Lab, Row, counted
from faults.lives import STEPS, Training, live, losses, samples, survive


def not_finite(lab: Lab) -> Iterator[Row]:
    alike, finite = [], []
    for seed in range(lab.trials):
        rng = random.Random(seed)
        training = lab.training(stage=rng.choice((0, 2, 3)))
        fault = Fault("nan", seed % 2, rng.randrange(1, STEPS), "forward")
        life = live(training, fault)
        rows = list(losses(training).values())
        whole = life.finished and len(rows) == STEPS - 1
        alike.append(lab.held(whole, fault, life))  # a step that is skipped reports no loss
        finite.append(all(map(math.isfinite, rows)))
        lab.forget(training)
    name = "a loss that is NaN on one rank (ZeRO 0, 2, 3)"
    yield from counted(name, {"skipped on all ranks, and gone on": alike, "weights stay finite": finite})
    again = []
    for seed in range(lab.few):
        training = lab.training(settings=("train.max_skipped=1",))
        life = live(training, Fault("nan", seed % 2, 5 + seed % 5, "forward"))
        again.append(life.finished and life.said.count("REWOUND") == 1 and len(losses(training)) == STEPS)
        lab.forget(training)
    yield from counted("NaN K steps in a row (K = 1)", {"rewound past the pictures that led there": again})


def flipped_bits(lab: Lab) -> Iterator[Row]:
    told, exact = [], []
    for seed in range(lab.few):
        rng = random.Random(seed)
        training = lab.training(options=("--paranoid",))
        fault = Fault("flip", seed % 2, rng.randrange(1, STEPS), "forward", rng.randrange(10_000))
        first = live(training, fault)
        told.append(lab.held("ReplicaError" in first.said, fault, first))
        exact.append(survive(training, [])[-1].finished and lab.exact(training))
    yield from counted("--paranoid: a bit flips in one rank's weights", {"told": told, "ended bit-exact": exact})


def bad_data(lab: Lab) -> Iterator[Row]:
    """Every kind of bad picture: what is left is trained on, and what was bad is written down, no more and no less."""
    went_on, logged, even = [], [], []
    for seed in range(max(lab.trials, len(KINDS))):
        rng = random.Random(seed)
        data, chosen = _spoilt(lab, sorted(KINDS)[seed % len(KINDS)], rng, rng.randrange(1, 4))
        training = lab.training(data=data, settings=("data.bad_budget=0.9",))
        life = live(training)
        went_on.append(lab.held(life.finished, chosen, life))
        logged.append(_quarantined(training) == chosen)
        even.append(all(len(rows) == 2 for rows in samples(training).values()))
        lab.forget(training)
    name = "corrupt, truncated or empty JPEG, JSON, RLE; another size than the JSON says"
    yield from counted(name, {"no crash": went_on, "record of them exact": logged, "ranks get equally many": even})
    stopped = []
    for seed in range(lab.few):
        rng = random.Random(seed)
        data, _ = _spoilt(lab, sorted(KINDS)[seed % len(KINDS)], rng, 11)
        life = live(lab.training(data=data, settings=("data.bad_budget=0.0",)))
        refused = 2 in life.codes and " are bad" in life.said and "Traceback" not in life.said
        stopped.append(lab.held(refused, "bad pictures", life))
    yield from counted("more of them than the budget", {"stopped, with the reason": stopped})


def _spoilt(lab: Lab, kind: str, rng: random.Random, number: int) -> tuple[Path, set[str]]:
    """A copy of the pictures of which some are bad, and their names."""
    data = lab.scratch()
    shutil.copytree(lab.data, data)
    chosen = rng.sample(sorted((data / "train").glob("*.jpg")), number)
    for picture in chosen:
        KINDS[kind](picture)
    return data, {picture.stem for picture in chosen}


def _quarantined(training: Training) -> set[str]:
    path = training.output / "quarantine.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {Path(json.loads(line)["file"]).stem for line in lines}


def _rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """A picture's JSON, changed."""

    def work(picture: Path) -> None:
        path = picture.with_suffix(".json")
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return work


KINDS: dict[str, Callable[[Path], object]] = {
    "truncated JPEG": lambda picture: os.truncate(picture, picture.stat().st_size // 2),
    "empty JPEG": lambda picture: os.truncate(picture, 0),
    "noise for a JPEG": lambda picture: picture.write_bytes(random.Random(0).randbytes(2000)),
    "cut JSON": lambda picture: os.truncate(picture.with_suffix(".json"), 100),
    "wrong RLE": _rewritten(lambda content: [a["segmentation"].update(counts="0000") for a in content["annotations"]]),
    "another size": _rewritten(lambda content: content["image"].update(width=7)),
}
