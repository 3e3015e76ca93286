"""``sam-ds check``: look at a training before it costs anything."""

from __future__ import annotations

import argparse
from typing import Any

from sam_ds.cli.train import add_run_options, read_run_options
from sam_ds.config import hostfile
from sam_ds.config.errors import UserError

_EXAMPLE = """examples:
  sam-ds check --recipe sam_vit_h --deepspeed_config zero2_a100x256.json --hostfile hostfiles/a100x256.hostfile
  sam-ds check --gradients --recipe tiny
  deepspeed --num_gpus 8 --module sam_ds check --gradients --recipe sam_vit_h --deepspeed_config my.json
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "check",
        help="check a recipe and a DeepSpeed config, and that gradients are right",
        description="Check that a recipe and a DeepSpeed config hold together; with --gradients, run one step on drawn "
        "pictures and compare DeepSpeed's gradients with plain autograd's.",
        epilog=_EXAMPLE,
    )
    add_run_options(parser)
    parser.add_argument("--hostfile", metavar="FILE", help="where it is to run: does the batch fit its ranks?")
    parser.add_argument("--gradients", action="store_true", help="compare gradients with plain autograd")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.hostfile and args.gradients:
        raise UserError("--hostfile is for a run elsewhere; --gradients runs here: give one of them")
    world = hostfile.world_size(hostfile.load(args.hostfile)) if args.hostfile else None
    recipe, config = read_run_options(args, world)
    from sam_ds.training import tasks

    tasks.kit(recipe.task).check(recipe)
    if args.gradients:
        return _gradients(recipe, config)
    print(f"{recipe.name} with {config.source}: the settings hold together")
    return 0


def _gradients(recipe: Any, config: Any) -> int:
    from sam_ds.engine import distributed
    from sam_ds.engine.gradients import compare_gradients
    from sam_ds.training import tasks

    kit = tasks.kit(recipe.task)
    distributed.init()
    try:
        world = distributed.world_size()
        batches = [kit.example(recipe, micro * world + distributed.rank()) for micro in range(config.accumulation)]
        # Past a frozen start, so that every parameter is compared.
        step = recipe.optim.frozen_encoder_steps
        report = compare_gradients(kit.build, recipe, config, batches, step)
        if distributed.is_main():
            print(report)
        return 0 if report.passed else 1
    finally:
        distributed.shut_down()
