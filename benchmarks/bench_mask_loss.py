"""Focal and dice loss and IoU of 64 objects' three masks on a 1024 x 1024 grid, from logits of 256 x 256.

  triton         ours: upsampling, losses and their backward in one kernel each
  fused          our fallback in plain torch: upsampled first, a backward written by hand
  reference      the definitions on upsampled logits, autograd's backward
  compiled       torch.compile of the reference (not with --no-compile)

Ours in a training goes backward through the chosen mask alone; the rows named "best of 3" do as the objective does:
the losses of all three without a graph, then the best of them with one. "all 3" is one call with a graph.

On a CPU the kernel is interpreted, at a tiny size: times say nothing, saved bytes do.

  python benchmarks/bench_mask_loss.py [--objects 64] [--no-compile] [--no-save]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import torch
from kernel_timing import DEVICE, measure
from torch import Tensor

if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

from common import RESULTS, append_rows

from sam_ds.ops.mask_loss import mask_loss

Losses = Callable[[Tensor], list[Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = DEVICE == "cuda"
    parser.add_argument("--objects", type=int, default=64 if on_gpu else 1)
    parser.add_argument(
        "--side", type=int, default=256 if on_gpu else 16, help="of the logits; the truth's is 4 times it"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-save", action="store_true", help="do not add to benchmarks/results/kernels.csv")
    args = parser.parse_args()
    torch.manual_seed(0)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    logits = torch.randn(args.objects, 3, args.side, args.side, device=DEVICE, dtype=dtype).requires_grad_()
    truth = torch.rand(args.objects, 4 * args.side, 4 * args.side, device=DEVICE) > 0.7
    valid = torch.full((args.objects, 2), 4 * args.side, dtype=torch.int32, device=DEVICE)
    shape = f"{args.objects}x3x{args.side}x{args.side} to {4 * args.side}"
    rows: list[dict[str, object]] = []
    print(f"mask_loss, {shape}, {DEVICE}")
    for name, function in providers(truth, valid, args.no_compile or not on_gpu).items():
        for masks, losses in (("all 3", function), ("best of 3", best_of(function))):
            rows += measure_case(shape, f"{name}, {masks}", losses, logits)
    if not args.no_save:
        append_rows(RESULTS / "kernels.csv", rows)


def measure_case(shape: str, provider: str, losses: Losses, logits: Tensor) -> list[dict[str, object]]:
    try:
        timings = list(measure(losses, [logits]))
    except torch.OutOfMemoryError:
        print(f"  {provider:20} out of memory")
        return []
    print(f"  {provider:20}", "  ".join(f"{t.mode} {t.ms_50:8.3f} ms" for t in timings), end="  ")
    print(f"peak {timings[-1].peak_mb:7.0f} MB  saved {timings[0].saved_mb:7.1f} MB", flush=True)
    rows = [{"op": "mask_loss", "shape": shape, "provider": provider, **vars(timing)} for timing in timings]
    return [{key: round(x, 4) if isinstance(x, float) else x for key, x in row.items()} for row in rows]


def providers(truth: Tensor, valid: Tensor, no_compile: bool) -> dict[str, Losses]:
    def op(implementation: str) -> Losses:
        def run(logits: Tensor) -> list[Tensor]:
            focal, dice, _ = mask_loss(logits, truth, valid, implementation=implementation)
            return [focal, dice]

        return run

    chosen = {name: op(name) for name in ("triton", "fused", "reference")}
    if not no_compile:
        chosen["compiled"] = torch.compile(op("reference"), dynamic=False)
    return chosen


def best_of(losses: Losses) -> Losses:
    """The losses of each object's best mask, found without a graph."""

    def run(logits: Tensor) -> list[Tensor]:
        with torch.no_grad():
            focal, dice = losses(logits)
            best = (20 * focal + dice).argmin(1)
        return losses(logits[torch.arange(len(logits), device=logits.device), best][:, None])

    return run


if __name__ == "__main__":
    main()
