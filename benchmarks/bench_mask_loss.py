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
from kernel_timing import DEVICE, Floor, compare
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
        "--side", type=int, default=256 if on_gpu else 8, help="of the logits; the truth's is 4 times it"
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
    plain = providers(truth, valid, args.no_compile or not on_gpu)
    best = {f"{name}, best of 3": best_of(losses) for name, losses in plain.items()}
    chosen = {**{f"{name}, all 3": losses for name, losses in plain.items()}, **best}
    read = Floor(0.0, logits.nbytes + truth.nbytes)
    rows = compare("mask_loss", shape, chosen, [logits], read, read + Floor(0.0, logits.nbytes))
    if not args.no_save:
        append_rows(RESULTS / "kernels.csv", rows)


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
