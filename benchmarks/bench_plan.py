"""Plans of every recipe with the configs that are made for it, and how each scales over nodes. All of it predicted.

python benchmarks/bench_plan.py [--recipes sam_vit_h …] [--no-save]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

os.environ["TRITON_INTERPRET"] = "1"  # the plans ask the kernels for the shapes of their answers

from common import RESULTS, append_rows

from sam_ds import recipes
from sam_ds.cli.plan import make_tracer, own_world, spread
from sam_ds.config import deepspeed
from sam_ds.planning.advice import advise
from sam_ds.planning.machines import GPUS
from sam_ds.planning.plan import Plan, Tracer, make_plan
from sam_ds.planning.report import sweep_rows, sweep_text

# By recipe the configs of ds_configs/README.md; the first of each is also spread over fewer nodes.
CONFIGS = {
    "sam_vit_b": ("zero2_a100x128", "zero3_a100x128"),
    "sam_vit_l": ("zero2_a100x128", "zero3_a100x128"),
    "sam_vit_h": ("zero2_a100x256", "zero3_a100x256", "zero2_a100x256_batch512", "zero3_offload_a100x8"),
    "sam_vit_h_curriculum": ("zero2_a100x256_batch1024",),
    "meta_sam_large": ("zero2_a100x128_batch1024",),
    "mae_vit_b": ("zero2_a100x128_batch4096",),
    "mae_vit_l": ("zero2_a100x128_batch4096",),
    "mae_vit_h": ("zero2_a100x128_batch4096",),
    "mae_meta_sam_large": ("zero2_a100x128_batch4096",),
}
NODES = (1, 2, 4, 8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(CONFIGS), choices=CONFIGS)
    parser.add_argument("--no-save", action="store_true", help="do not add to benchmarks/results/plans.csv")
    args = parser.parse_args()
    rows = []
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:  # tracing keeps one core busy
        for own, text in pool.map(_planned, args.recipes):
            rows += own
            print(text, flush=True)
    if not args.no_save:
        append_rows(RESULTS / "plans.csv", rows)


def _planned(name: str) -> tuple[list[dict[str, object]], str]:
    """A recipe's rows, and what there is to read."""
    tracer = make_tracer(on_gpu=True)
    plans = list(_plans(name, tracer))
    texts = [
        f"{name}, {config}, {gpu}\n{sweep_text(alike, [advise(p, tracer) if not p.fits else [] for p in alike])}\n"
        for config, gpu, alike in _sets(plans)
    ]
    return sweep_rows(plans), "\n".join(texts)


def _plans(name: str, tracer: Tracer) -> Iterator[Plan]:
    recipe = recipes.get(name)
    for index, config_name in enumerate(CONFIGS[name]):
        config = deepspeed.load(config_name)
        own = own_world(config)
        gpu = GPUS["A100-80"]
        worlds = [count * gpu.per_node for count in NODES if count * gpu.per_node < own] if index == 0 else []
        for world in [*worlds, own]:
            yield make_plan(recipe, spread(config, world), gpu, world, tracer)
    for other in GPUS.values():
        if other.name != "A100-80":
            config = deepspeed.load(CONFIGS[name][0])
            yield make_plan(recipe, config, other, own_world(config), tracer)


def _sets(plans: list[Plan]) -> list[tuple[str, str, list[Plan]]]:
    """Plans of one config and GPU together."""
    sets: dict[tuple[str, str], list[Plan]] = {}
    for plan in plans:
        sets.setdefault((plan.config.source, plan.gpu.name), []).append(plan)
    return [(*key, alike) for key, alike in sets.items()]


if __name__ == "__main__":
    main()
