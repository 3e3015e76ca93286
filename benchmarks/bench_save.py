"""What a checkpoint costs the training: how long steps stand still for it, written beside the training or in its way.

One process with ZeRO-2 on a CPU trains SAM on crops. Turn by turn a checkpoint is saved in both ways between steps;
both write, hash and sync the same files. What is left of the asynchronous one is the copy to the host, and steps that
are slower while the disk and a core are busy with it.

  python benchmarks/bench_save.py [--preset vit_b] [--crop 256] [--repeats 3] [--no-save]
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from itertools import count
from pathlib import Path

import torch
from bench_train_step import make_batch, make_recipe
from common import RESULTS, append_rows

from sam_ds.config import deepspeed
from sam_ds.engine import checkpoint, distributed
from sam_ds.engine.engine import Engine
from sam_ds.recipes import RECIPES
from sam_ds.tasks.segment_images import SegmentImages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="vit_b")
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-save", action="store_true", help="print only")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the writer has the other core
    distributed.init()
    trainer = Trainer(args.preset, args.crop)
    with tempfile.TemporaryDirectory() as folder:
        trainer.steps(1)
        found = [trainer.measure(Path(folder), asynchronous) for _ in range(args.repeats) for asynchronous in (0, 1)]
    step = statistics.median(trainer.seconds)
    rows = [row(args, found[way::2], ("synchronous", "asynchronous")[way], step) for way in range(2)]
    for each in rows:
        print("  ".join(f"{name} {value}" for name, value in each.items()))
    if not args.no_save:
        append_rows(RESULTS / "save.csv", rows)
    distributed.shut_down()


class Trainer:
    def __init__(self, preset: str, crop: int) -> None:
        recipe = make_recipe(RECIPES["sam_vit_b"](), masks=4)
        model = dataclasses.replace(recipe.model, preset=preset, checkpointing="none")
        recipe = dataclasses.replace(recipe, model=model)
        raw = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}}
        self.engine = Engine(SegmentImages, recipe, deepspeed.parse(raw))
        self._batch = make_batch(crop, 4)
        self._numbers = count()
        self.seconds: list[float] = []  # of steps that no writing went along with

    def steps(self, number: int) -> list[float]:
        return [self._step() for _ in range(number)]

    def _step(self) -> float:
        began = time.perf_counter()
        self.engine.train_step([self._batch], next(self._numbers))
        return time.perf_counter() - began

    def measure(self, folder: Path, asynchronous: int) -> dict[str, float]:
        """Seconds that a save stands in the way, and of the steps that it goes along with."""
        self.seconds += self.steps(1)
        began = time.perf_counter()
        saving = checkpoint.Saving(self.engine, folder, 1)
        if not asynchronous:
            saving.finish()
        stall, beside = time.perf_counter() - began, []
        while asynchronous and saving.busy():
            beside.append(self._step())
        if asynchronous:
            last = time.perf_counter()
            saving.finish()
            stall += time.perf_counter() - last
        size = sum(path.stat().st_size for path in (folder / "step_00000001").iterdir())
        return {"stall": stall, "beside": sum(beside), "steps": len(beside), "bytes": size}


def row(args: argparse.Namespace, found: list[dict[str, float]], way: str, step: float) -> dict[str, object]:
    """Medians; ``lost`` is the stall and what steps took longer while a checkpoint was written."""
    stall = statistics.median(each["stall"] for each in found)
    lost = statistics.median(each["stall"] + each["beside"] - each["steps"] * step for each in found)
    return {
        "preset": args.preset,
        "crop": args.crop,
        "way": way,
        "checkpoint_mb": round(found[0]["bytes"] / 1e6),
        "step_s": round(step, 3),
        "stall_s": round(stall, 3),
        "stall_steps": round(stall / step, 3),
        "lost_s": round(lost, 3),
        "lost_steps": round(lost / step, 3),
    }


if __name__ == "__main__":
    main()
