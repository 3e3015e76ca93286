"""All-reduce, reduce-scatter and all-gather over the messages that the engine really sends, between local ranks.

A step of each recipe runs under each DeepSpeed config while its collectives are written down: gradient buckets of
ZeRO-2 and the gathers of its partitions, fetches and reduced buckets of ZeRO-3. Then each size is timed alone. On a
CPU that is gloo between two processes of one thread, over loopback: what it says is which sizes are sent how often,
and how far small ones are from the bandwidth of large ones. With two GPUs or more it is NCCL between all of them.

  bytes       of the whole tensor: what is reduced on every rank, or what every rank has after a gather
  count       how often a step sends it
  algorithm   bytes over time;  bus: times what a rank must send of each byte (2 (n - 1) / n for an all-reduce of n
              ranks, else (n - 1) / n), which compares with the bandwidth of the links

  python benchmarks/bench_communication.py [--recipes tiny sam_vit_b] [--configs zero2_a100x256 zero3_a100x256]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ranks
import torch
from common import RESULTS, append_rows

from sam_ds.config import deepspeed
from sam_ds.recipes import RECIPES


def main() -> None:
    gpus = torch.cuda.device_count()
    on_gpus = gpus >= 2
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipes = ["sam_vit_b", "sam_vit_h"] if on_gpus else ["tiny", "sam_vit_b"]
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=recipes)
    parser.add_argument("--configs", nargs="+", default=["zero2_a100x256", "zero3_a100x256"])
    parser.add_argument("--crop", type=int, default=64, help="side of the step's picture: it changes no message")
    parser.add_argument("--masks", type=int, default=1, help="the step's objects: they change no message")
    parser.add_argument("--repeats", type=int, default=7, help="of every message")
    parser.add_argument("--no-save", action="store_true", help="do not add to benchmarks/results/communication.csv")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for recipe in args.recipes:
            for config in args.configs:
                where = {"world": gpus if on_gpus else 2, "accelerator": "cuda" if on_gpus else "cpu"}
                settings = where | {"recipe": recipe, "deepspeed": of_one_picture(config)}
                settings |= {name: getattr(args, name) for name in ("crop", "masks", "repeats")}
                results = ranks.run("communication_loop.py", settings, Path(folder) / f"{recipe} {config}")
                rows = [{"recipe": recipe, "config": config, **row} for row in rows_of(results)]
                report(recipe, config, rows)
                if not args.no_save:
                    append_rows(RESULTS / "communication.csv", rows)


def of_one_picture(config: str) -> dict[str, Any]:
    """A DeepSpeed config for as many ranks as there are here, of one picture each, its buckets as they are."""
    raw = deepspeed.load(config).raw
    return {k: v for k, v in raw.items() if k != "train_batch_size"} | {"train_micro_batch_size_per_gpu": 1}


def rows_of(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a message. It takes as long as it does on its slowest rank."""
    world, rows = len(results), []
    for same in zip(*(result["messages"] for result in results), strict=True):
        op, size, count = (same[0][name] for name in ("op", "bytes", "count"))
        assert all((m["op"], m["bytes"], m["count"]) == (op, size, count) for m in same), "ranks send other messages"
        taken = [max(rounds) for rounds in zip(*(message["ms"] for message in same), strict=True)]
        low, middle, high = (float(x) for x in np.percentile(taken, (20, 50, 80)))
        algorithm = size / middle / 1e6
        rows.append(
            {
                "backend": results[0]["backend"],
                "ranks": world,
                "op": op,
                "bytes": size,
                "count": count,
                "ms_20": round(low, 4),
                "ms_50": round(middle, 4),
                "ms_80": round(high, 4),
                "algorithm_gb_s": round(algorithm, 4),
                "bus_gb_s": round(algorithm * (2 if op == "all-reduce" else 1) * (world - 1) / world, 4),
            }
        )
    return rows


def report(recipe: str, config: str, rows: list[dict[str, Any]]) -> None:
    print(f"{recipe}, {config}, {rows[0]['ranks']} ranks, {rows[0]['backend']}")
    print("  op                   bytes   a step      20 %    median     80 % (ms)   algorithm       bus (GB/s)")
    for row in rows:
        print(
            f"  {row['op']:14} {row['bytes']:12,} {row['count']:6} {row['ms_20']:9.3f} {row['ms_50']:9.3f}"
            f" {row['ms_80']:9.3f} {row['algorithm_gb_s']:14.3f} {row['bus_gb_s']:9.3f}"
        )
    sent, taken = (sum(row["count"] * row[name] for row in rows) for name in ("bytes", "ms_50"))
    print(f"  a step: {sum(row['count'] for row in rows)} messages, {sent / 1e6:.1f} MB, {taken:.1f} ms", flush=True)


if __name__ == "__main__":
    main()
