"""Drawing 64 masks of a 2250 x 1500 picture from their runs onto the 1024 x 1024 input.

triton      ours on a GPU
reference   plain torch: one binary search for all pixels at once
numba       compiled for the CPU (on a CPU only)

python benchmarks/bench_rasterize.py [--masks 64] [--no-save]
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch
from kernel_timing import DEVICE, Floor, Timing, as_row, quantiles

if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

from common import RESULTS, append_rows

from sam_ds.ops.rasterize import rasterize
from sam_ds.types import MaskRuns

HEIGHT, WIDTH = 1500, 2250


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=64 if DEVICE == "cuda" else 2)
    parser.add_argument("--side", type=int, default=1024 if DEVICE == "cuda" else 128, help="of the output")
    parser.add_argument("--no-save", action="store_true", help="do not add to benchmarks/results/kernels.csv")
    args = parser.parse_args()
    runs = make_runs(args.masks)
    scale = WIDTH / args.side
    matrices = torch.tensor([[scale, 0, 0], [0, scale, 0]], device=DEVICE).repeat(args.masks, 1, 1)
    shape = f"{args.masks} masks of {WIDTH}x{HEIGHT} to {args.side}"
    print(f"rasterize, {shape}, {DEVICE}")
    rows: list[dict[str, object]] = []
    floor = Floor(0.0, args.masks * args.side**2 + runs.ends.nbytes)
    for provider in ("triton", "reference", *(("numba",) if DEVICE == "cpu" else ())):
        times = quantiles(lambda name=provider: rasterize(runs, matrices, (args.side, args.side), name))
        timing = Timing("forward", *times, peak_mb=float("nan"), saved_mb=0.0)
        rows.append(as_row("rasterize", shape, provider, timing, floor))
        print(f"  {provider:10} {timing.ms_50:8.3f} ms")
    if not args.no_save:
        append_rows(RESULTS / "kernels.csv", rows)


def make_runs(count: int) -> MaskRuns:
    """Ellipses of many sizes, as runs down their columns."""
    rng = np.random.default_rng(0)
    ends = []
    for _ in range(count):
        half_width, half_height = np.exp(rng.uniform(np.log(20), np.log(700), 2))
        x, y = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
        columns = np.arange(max(0, int(x - half_width)), min(WIDTH, int(x + half_width)))
        reach = half_height * np.sqrt(np.clip(1 - ((columns - x) / half_width) ** 2, 0, 1))
        first, last = (np.clip(y + sign * reach, 0, HEIGHT).astype(int) for sign in (-1, 1))
        cuts = np.stack([columns * HEIGHT + first, columns * HEIGHT + last], 1)[last > first].ravel()
        ends.append(np.append(cuts, HEIGHT * WIDTH))
    offsets = torch.from_numpy(np.cumsum([0, *map(len, ends)]))
    sizes = torch.tensor([[HEIGHT, WIDTH]] * count, dtype=torch.int32)
    return MaskRuns(torch.from_numpy(np.concatenate(ends)).int().to(DEVICE), offsets.to(DEVICE), sizes.to(DEVICE))


if __name__ == "__main__":
    main()
