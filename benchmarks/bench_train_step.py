"""A training step of SAM on one GPU in plain torch: what each choice of attention and mask loss costs.

Forward, backward and optimizer, one picture with 64 objects and the paper's 11 rounds, weights in bfloat16 (in float32
on a processor that is no good at it), encoder blocks and decoder rounds recomputed in backward. No DeepSpeed: what is
compared is ours with ours, on one machine.

  triton      the kernels
  plain       the fastest of plain torch: attention as augmented SDPA, the hand-written loss
  reference   the definitions, as public code has them

Beside the most memory that was measured stands what the planner's trace predicts. On a CPU the tiny recipe takes the
place of the large ones, and there are no kernels.

  python benchmarks/bench_train_step.py [--recipes sam_vit_b sam_vit_h] [--steps 3] [--no-save]
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from bench_rasterize import HEIGHT, WIDTH, make_runs
from common import RESULTS, ROOT, append_rows
from kernel_timing import DEVICE

from sam_ds.config.schema import CurriculumConfig, Recipe
from sam_ds.engine import activation_checkpointing
from sam_ds.engine.precision import cpu_multiplies
from sam_ds.ops.choice import VARIABLE
from sam_ds.recipes import RECIPES
from sam_ds.tasks.segment_images import SegmentImages
from sam_ds.types import SegmentBatch

CHOICES = {
    "triton": "rel_pos_attention=triton,mask_loss=triton,rasterize=triton",
    "plain": "rel_pos_attention=sdpa,mask_loss=fused,rasterize=reference",
    "reference": "rel_pos_attention=reference,mask_loss=reference,rasterize=reference",
}
PRECISION = "bf16" if DEVICE == "cuda" or cpu_multiplies("bf16") else "fp32"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_WARMUP = 2 if DEVICE == "cuda" else 1  # steps that are not timed: on a GPU the first tune kernels
PARTS = ("prepare", "encoder", "rounds", "backward", "optimizer")


def main() -> None:
    on_gpu = DEVICE == "cuda"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["sam_vit_b", "sam_vit_h"] if on_gpu else ["tiny"])
    parser.add_argument("--masks", type=int, default=64 if on_gpu else 4)
    parser.add_argument("--steps", type=int, default=3, help="timed ones; the medians are reported")
    parser.add_argument("--no-save", action="store_true", help="do not add to benchmarks/results/train_step.csv")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    for name in args.recipes:
        recipe = make_recipe(RECIPES[name](), args.masks)
        print(f"{name}, {args.masks} objects, {recipe.prompts.rounds} rounds, {PRECISION}, {DEVICE}")
        for choice in CHOICES if on_gpu else ("plain", "reference"):
            gc.collect()  # modules refer to themselves by their hooks
            torch.cuda.empty_cache()  # the next choice's peak and room are its own
            try:
                row = measure(recipe, CHOICES[choice], args)
                row["predicted_mb"] = predict(name, args.masks, CHOICES[choice])
            except torch.OutOfMemoryError:
                print(f"  {choice:10} out of memory")
                continue
            about = {"recipe": name, "choice": choice, "precision": PRECISION, "masks": args.masks}
            rows.append({**about, "num_rounds": recipe.prompts.rounds, **row})
            print(f"  {choice:10}", "  ".join(f"{part} {value}" for part, value in row.items()), flush=True)
    if not args.no_save:
        append_rows(RESULTS / "train_step.csv", rows)


def make_recipe(recipe: Recipe, masks: int) -> Recipe:
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, checkpointing="torch", init=""),
        data=dataclasses.replace(recipe.data, max_masks=masks),
        curriculum=CurriculumConfig(),
    )


def measure(recipe: Recipe, choice: str, args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of each part of a step, pictures a second, and the most memory."""
    os.environ[VARIABLE] = choice
    torch.manual_seed(0)
    task = SegmentImages(recipe).to(DEVICE).train()
    for parameter in task.parameters():  # not the buffers: positions stay in float32
        parameter.data = parameter.data.to(DTYPES[PRECISION])
    activation_checkpointing.apply(task.checkpointed(), recipe.model)
    optimizer = torch.optim.AdamW(task.parameters(), 1e-4, fused=True)
    clock = Clock(task)
    batch = make_batch(task.model.config.image_size, args.masks)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps = [step(task, optimizer, batch, clock) for _ in range(_WARMUP + args.steps)][_WARMUP:]
    parts = {part: round(1e3 * statistics.median(s[part] for s in steps), 2) for part in PARTS}
    whole = statistics.median(sum(s.values()) for s in steps)
    peak = torch.cuda.max_memory_allocated() / 1e6 if DEVICE == "cuda" else float("nan")
    return {**parts, "pictures_per_second": round(1 / whole, 3), "peak_mb": round(peak, 1)}


def predict(name: str, masks: int, choice: str) -> float:
    """The most memory, MB, as the planner has it."""
    command = [sys.executable, str(ROOT / "benchmarks" / "predict_step.py"), name, str(masks), choice, PRECISION]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return round(json.loads(done.stdout)["bytes"] / 1e6, 1)


class Clock:
    """When the device got to a point. The encoder's end is seen by a hook."""

    def __init__(self, task: SegmentImages) -> None:
        self.times: list[float] = []
        task.encoder.register_forward_hook(lambda *_: self.lap())

    def lap(self) -> None:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def step(task: SegmentImages, optimizer: torch.optim.Optimizer, batch: SegmentBatch, clock: Clock) -> dict[str, float]:
    """Seconds of each part."""
    clock.times.clear()
    clock.lap()
    inputs = task.prepare(batch, 0)
    clock.lap()
    loss, _ = task(inputs, inputs.count)  # the encoder laps
    clock.lap()
    loss.backward()
    clock.lap()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    clock.lap()
    return dict(zip(PARTS, torch.tensor(clock.times, dtype=torch.float64).diff().tolist(), strict=True))


def make_batch(side: int, masks: int) -> SegmentBatch:
    """One picture of noise with ellipses for objects."""
    scale = WIDTH / side
    return SegmentBatch(
        images=torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, device=DEVICE),
        valid_sizes=torch.tensor([[round(HEIGHT / scale), side]], dtype=torch.int32, device=DEVICE),
        to_source=torch.tensor([[[scale, 0, 0], [0, scale, 0]]], device=DEVICE),
        runs=make_runs(masks),
        picture=torch.zeros(masks, dtype=torch.int64, device=DEVICE),
        mask_ids=torch.arange(masks, device=DEVICE),
        sample_ids=torch.zeros(1, dtype=torch.int64, device=DEVICE),
        positions=torch.zeros(1, dtype=torch.int64, device=DEVICE),
    )


if __name__ == "__main__":
    main()
