"""What tracking costs a training step: MLflow healthy, hanging, dead, or not asked for.

One process trains a small SAM on one thread and reports its numbers after every step. The four ways take turns of some
seconds each, in a new order every round; what is compared are the medians of all their steps. A real MLflow server
stands behind a proxy that can hang or refuse. The training only writes lines to a file in every way: what can differ is
the work of the process beside it that sends them.

  python benchmarks/bench_tracking.py [--rounds 3] [--steps 12] [--no-save]
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from bench_save import Trainer
from common import RESULTS, append_rows
from faults.servers import Proxy, mlflow_server

from sam_ds.config.schema import Recipe, TrackingConfig
from sam_ds.engine import distributed
from sam_ds.tracking.tracker import Tracker, open_tracker

WAYS = {"without": "", "healthy": "passes", "hanging": "hangs", "dead": "refuses"}
_NAMES = [f"loss/part_{i}" for i in range(20)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="of a turn")
    parser.add_argument("--no-save", action="store_true", help="print only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    distributed.init()
    trainer = Trainer("tiny", 128)
    trainer.steps(5)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    calls: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder, mlflow_server(Path(folder)) as port:
        proxy = Proxy(port)
        for turn in range(args.rounds):
            for way in random.Random(turn).sample(sorted(WAYS), len(WAYS)):
                run = Path(folder) / f"{way}_{turn}"
                run.mkdir()
                tracker = start(run, way, proxy)
                time.sleep(6 if way != "without" else 0)  # the writer has started, which is once a training
                for step in range(args.steps):
                    began = time.perf_counter()
                    trainer.steps(1)
                    reporting = time.perf_counter()
                    tracker.metrics(step, dict.fromkeys(_NAMES, 0.5))
                    calls[way].append(time.perf_counter() - reporting)
                    seconds[way].append(time.perf_counter() - began)
                proxy.mode = "passes"  # so that the writer can end
                tracker.close()
    base = statistics.median(seconds["without"])
    rows = [
        {
            "way": way,
            "step_ms": round(1e3 * statistics.median(seconds[way]), 2),
            "of_without": round(statistics.median(seconds[way]) / base, 4),
            "call_us": round(1e6 * statistics.median(calls[way]), 1),
            "steps": len(seconds[way]),
        }
        for way in WAYS
    ]
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    if not args.no_save:
        append_rows(RESULTS / "tracking.csv", rows)
    distributed.shut_down()


def start(run: Path, way: str, proxy: Proxy) -> Tracker:
    proxy.mode = WAYS[way] or "passes"
    recipe = Recipe("bench", tracking=TrackingConfig(mlflow=way != "without", hosts_every=0))
    with mock.patch.dict(os.environ, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{proxy.port}"):
        return open_tracker(run, recipe, {})


if __name__ == "__main__":
    main()
