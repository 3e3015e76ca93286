"""Is the plan right? Peak memory and time of a step, predicted beside measured, over settings that matter to them.

On a CPU two ranks train small models under gloo; what counts is what tensors hold, as torch's profiler sees every
allocation. The plan's rates of this machine are fitted to every other point of each model and stage (``fitted`` in the
table) and predict the rest; its memory is predicted without a look at the machine. In bfloat16 where the machine has
products of it, else in float32.

  python benchmarks/bench_memory.py [--world 2] [--steps 3] [--points 10] [--no-save] [--machine cpu.json]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # the plan asks the kernels for the shapes of their answers; the ranks run them

import ranks
import torch
from common import RESULTS, append_rows
from fit_machine import fit, predicted_seconds, this_machine

from sam_ds.cli.plan import make_tracer
from sam_ds.config import deepspeed, recipe_file
from sam_ds.config.schema import CurriculumConfig, Recipe
from sam_ds.engine.precision import local_config
from sam_ds.planning.memory import memory
from sam_ds.recipes import RECIPES


@dataclasses.dataclass(frozen=True)
class Point:
    preset: str
    stage: int
    batch: int
    masks: int
    crop: int
    checkpointing: str
    accumulation: int = 1

    @property
    def recipe(self) -> Recipe:
        base = RECIPES["tiny" if self.preset == "tiny" else "sam_vit_b"]()
        return dataclasses.replace(
            base,
            model=dataclasses.replace(base.model, preset=self.preset, checkpointing=self.checkpointing, init=""),
            data=dataclasses.replace(base.data, max_masks=self.masks, crop_size=self.crop),
            prompts=dataclasses.replace(base.prompts, correction_rounds=2, extra_rounds=0),
            curriculum=CurriculumConfig(),
        )

    def config(self, world: int) -> deepspeed.DeepSpeedConfig:
        raw = deepspeed.load(local_config(self.stage)).raw
        raw["train_micro_batch_size_per_gpu"] = self.batch
        raw["gradient_accumulation_steps"] = self.accumulation
        raw["train_batch_size"] = self.batch * self.accumulation * world
        raw["zero_optimization"]["reduce_bucket_size"] = 5_000_000
        return deepspeed.parse(raw)


POINTS = [
    Point("tiny", 2, 4, 8, 256, "none"),
    Point("tiny", 2, 1, 32, 320, "torch"),
    Point("tiny", 3, 4, 8, 256, "none"),
    Point("tiny", 3, 2, 16, 320, "torch"),
    Point("vit_b", 2, 1, 4, 192, "none"),
    Point("vit_b", 3, 1, 4, 192, "none"),
    Point("vit_b", 2, 1, 4, 224, "torch"),
    Point("vit_b", 3, 2, 4, 192, "torch"),
    Point("vit_b", 2, 1, 4, 192, "torch", accumulation=2),
    Point("tiny", 3, 2, 8, 256, "none", accumulation=2),
    Point("tiny", 2, 8, 4, 256, "none"),
    Point("tiny", 2, 4, 8, 320, "torch"),
    Point("tiny", 2, 2, 16, 320, "none"),
    Point("vit_b", 2, 2, 4, 192, "torch"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=int, default=torch.cuda.device_count() or 2, help="ranks")
    parser.add_argument("--steps", type=int, default=3, help="timed ones; their median counts")
    parser.add_argument("--points", type=int, default=10, help=f"the first so many of {len(POINTS)}")
    parser.add_argument("--machine", metavar="FILE", help="write this machine's rates there, for sam-ds plan --gpu")
    parser.add_argument("--no-save", action="store_true", help="do not add to benchmarks/results/memory.csv")
    args = parser.parse_args()
    points = POINTS[: args.points]
    measured = measure(points, args.world, args.steps)
    tracer = make_tracer(torch.cuda.is_available())
    configs = [point.config(args.world) for point in points]
    traces = [tracer(x.recipe, x.batch, config.precision) for x, config in zip(points, configs, strict=True)]
    alike = [[(other.preset, other.stage) for other in points[:index]] for index in range(len(points))]
    for_fit = [i for i, before in enumerate(alike) if before.count((points[i].preset, points[i].stage)) % 2 == 0]
    steps = [(trace, config, x["seconds"]) for trace, config, x in zip(traces, configs, measured, strict=True)]
    machine = fit([steps[i] for i in for_fit], args.world, this_machine())
    rows = []
    for index, (point, own, config) in enumerate(zip(points, measured, configs, strict=True)):
        seconds = predicted_seconds(machine, steps[index], args.world)
        row: dict[str, Any] = {
            **dataclasses.asdict(point),
            "precision": config.precision,
            "world": args.world,
            **_beside("mb", memory(traces[index], config, args.world).total / 1e6, own["bytes"] / 1e6),
            **_beside("ms", seconds * 1e3, own["seconds"] * 1e3),
            "fitted": "yes" if index in for_fit else "",
        }
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        rows.append(row)
    if args.machine:
        Path(args.machine).write_text(json.dumps(dataclasses.asdict(machine), indent=1))
    if not args.no_save:
        append_rows(RESULTS / "memory.csv", rows)


def measure(points: list[Point], world: int, steps: int) -> list[dict[str, float]]:
    """The largest of the ranks' bytes and seconds, by point: each in processes of its own, for engines leave traces."""
    accelerator, found = "cuda" if torch.cuda.is_available() else "cpu", []
    for point in points:
        described = {"recipe": recipe_file.to_dict(point.recipe), "deepspeed": point.config(world).raw}
        settings = {"world": world, "point": described, "steps": steps, "accelerator": accelerator}
        with tempfile.TemporaryDirectory() as folder:
            by_rank = ranks.run("memory_loop.py", settings, Path(folder) / "run")
        found.append({name: max(own[name] for own in by_rank) for name in by_rank[0]})
    return found


def _beside(unit: str, predicted: float, measured: float) -> dict[str, float]:
    return {
        f"predicted_{unit}": round(predicted, 1),
        f"measured_{unit}": round(measured, 1),
        f"off_{unit}": round(predicted / measured - 1, 3),
    }


if __name__ == "__main__":
    main()
