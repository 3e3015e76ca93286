"""``sam-ds plan``: memory, time and cost of a training, before it is started."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_ds.cli.train import DEFAULT_CONFIG, add_run_options, config_names, read_recipes
from sam_ds.config.errors import UserError

if TYPE_CHECKING:
    from sam_ds.planning.plan import Plan, Tracer

_EXAMPLE = """examples:
  sam-ds plan --recipe sam_vit_h --deepspeed_config zero2_a100x256.json
  sam-ds plan --recipe meta_sam_large --deepspeed_config zero2_a100x128_batch1024.json --gpu A100-40
  sam-ds plan --recipe sam_vit_h --deepspeed_config zero2_a100x256.json --nodes 1,2,4,8,16,32 --picture scaling.png
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="predict memory, time and cost of a training",
        description="Predict what a training needs of a GPU's memory, how long it takes and what it costs, by running "
        "one step of it on tensors without data. No GPU is needed. Everything printed is predicted, not measured. "
        "A recipe with a pre-training is planned after it, on the same GPUs.",
        epilog=_EXAMPLE,
    )
    add_run_options(parser)
    parser.add_argument(
        "--gpu", default="A100-80", metavar="NAME", help="A100-40, A100-80, H100, H200, or a .json file"
    )
    parser.add_argument(
        "--nodes",
        metavar="N[,N…]",
        help="how many; more than one number compares them at the config's batch (default: what the config's batch "
        "is made for)",
    )
    parser.add_argument("--hostfile", metavar="FILE", help="in place of --nodes: where it is to run")
    parser.add_argument("--price", type=_price, metavar="DOLLARS", help="of a GPU and hour")
    parser.add_argument("--json", action="store_true", help="print JSON: bytes, seconds, dollars")
    parser.add_argument(
        "--picture",
        metavar="FILE",
        help="draw the memory (and with more --nodes the scaling), a .png; of a recipe with a pre-training, its own",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from sam_ds.config import deepspeed

    recipes = read_recipes(args)
    configs = [deepspeed.load(name or DEFAULT_CONFIG) for name in config_names(args, len(recipes))]
    gpu, worlds = _where(args, configs[-1])  # a pre-training runs on the same GPUs
    if args.picture:
        _check_picture(Path(args.picture))
    os.environ["TRITON_INTERPRET"] = "1"  # the kernels are only asked for the shapes of their answers
    from sam_ds.ops.choice import TRITON
    from sam_ds.planning.plan import make_plan
    from sam_ds.planning.report import draw, together_rows, together_text

    if gpu.device == "cuda" and not TRITON:
        print("sam-ds: triton is not installed here: planned with plain torch's ops, which hold more", file=sys.stderr)
    tracer = make_tracer(gpu.device == "cuda")
    phases = [
        [make_plan(recipe, spread(config, world) if args.nodes else config, gpu, world, tracer) for world in worlds]
        for recipe, config in zip(recipes, configs, strict=True)
    ]
    shown = [_show(plans, tracer, args.json) for plans in phases]
    if args.json:
        # Of one phase what it is, as there is nothing to add up.
        whole = shown[0] if len(shown) == 1 else {"phases": shown, "together": together_rows(phases)}
        print(json.dumps(whole, indent=1))
    else:
        print("\n\n".join([*shown, *([together_text(phases)] if len(shown) > 1 else [])]))
    if args.picture:
        draw(phases[-1], Path(args.picture))
    return 0 if all(plan.fits for plans in phases for plan in plans) else 1


def _show(plans: list[Plan], tracer: Tracer, as_json: bool) -> Any:
    """One phase on each number of GPUs, for JSON or as text."""
    from sam_ds.planning.advice import advise
    from sam_ds.planning.report import sweep_rows, sweep_text, to_json, to_text

    advice = [advise(plan, tracer) if len(plans) == 1 or not plan.fits else [] for plan in plans]
    if len(plans) > 1:
        return sweep_rows(plans) if as_json else sweep_text(plans, advice)
    return to_json(plans[0], advice[0]) if as_json else to_text(plans[0], advice[0])


def _where(args: argparse.Namespace, config: Any) -> tuple[Any, list[int]]:
    """The GPU, as the options have it, and how many of them."""
    from sam_ds.config import hostfile
    from sam_ds.planning import machines

    gpu = machines.find(args.gpu)
    if args.price is not None:
        gpu = dataclasses.replace(gpu, price=args.price)
    if args.hostfile and args.nodes:
        raise UserError("--hostfile and --nodes both say where it runs: give one of them")
    if args.hostfile:
        hosts = hostfile.load(args.hostfile)
        gpu = dataclasses.replace(gpu, per_node=max(host.slots for host in hosts))
        return gpu, [hostfile.world_size(hosts)]
    return gpu, [count * gpu.per_node for count in _counts(args.nodes)] if args.nodes else [own_world(config)]


def _check_picture(path: Path) -> None:
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UserError(f"--picture {path}: name a .png, .pdf or .svg")
    if not path.parent.is_dir():
        raise UserError(f"--picture {path}: there is no folder {path.parent}; make it first")


def make_tracer(on_gpu: bool) -> Tracer:
    """What runs a recipe's task on a micro-batch without data, once for each question."""
    from sam_ds.engine import activation_checkpointing
    from sam_ds.planning.trace import trace
    from sam_ds.training import tasks

    @functools.cache
    def run_without_data(recipe: Any, micro_batch: int, precision: str) -> Any:
        kit = tasks.kit(recipe.task)
        without_weights = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, init=""))
        return trace(
            lambda: kit.build(without_weights),
            lambda task: activation_checkpointing.apply(task.checkpointed(), recipe.model),
            kit.full_batch(recipe, micro_batch),
            recipe,
            precision,
            on_gpu,
        )

    return run_without_data


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of dollars")
    return price


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1 or max(counts) > 100_000:
        raise UserError(f"--nodes {text}: give numbers from 1, separated by commas: 1,2,4,8")
    return counts


def own_world(config: Any) -> int:
    """The ranks that a config's batch is made for."""
    share = config.micro_batch * config.accumulation
    batch = int(config.raw.get("train_batch_size", share))
    if batch % share:
        config.check_world(max(1, batch // share))  # says what would fit
    return batch // share


def spread(config: Any, world: int) -> Any:
    """The config with the same batch on so many ranks, by another accumulation; as it is if it names no batch."""
    if "train_batch_size" not in config.raw:
        return config
    batch = int(config.raw["train_batch_size"])
    if batch % (config.micro_batch * world):
        raise UserError(
            f"{config.source}: a batch of {batch} in micro-batches of {config.micro_batch} does not divide among "
            f"{world} GPUs; leave that number of nodes out"
        )
    accumulation = batch // (config.micro_batch * world)
    raw = {**config.raw, "gradient_accumulation_steps": accumulation}
    return dataclasses.replace(config, accumulation=accumulation, raw=raw)
