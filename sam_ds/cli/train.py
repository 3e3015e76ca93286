"""``sam-ds train``: train a recipe, or go on with a training."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from sam_ds.config import signals
from sam_ds.config.errors import UserError

_EXAMPLE = """examples:
  sam-ds train --recipe tiny --data .cache/synthetic
  sam-ds train --recipe tiny --data photos --output runs/photos --set optim.lr=1e-3 --set train.steps=2000
  sam-ds train --recipe tiny --data photos --set model.init=mae_pretrain.pth
  sam-ds train --recipe tiny_from_mae --data photos --pretrain_data more_photos --pretrain_set train.steps=5000
  deepspeed --hostfile hostfiles/a100x256.hostfile --module sam_ds train --recipe sam_vit_h \\
      --deepspeed_config ds_configs/zero2_a100x256.json --data /data/sa1b --output runs/sam_vit_h
"""
DEFAULT_CONFIG = "zero2_local.json"


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a recipe",
        description="Train a recipe on a set of pictures: on the ranks of the deepspeed launcher, else in one process.",
        epilog=_EXAMPLE,
    )
    add_run_options(parser)
    parser.add_argument("--data", required=True, metavar="FOLDER", help="pictures with masks; see sam-ds data --help")
    parser.add_argument("--val", metavar="FOLDER", help="pictures to evaluate on (default: a part of --data)")
    add_pretraining_data(parser)
    parser.add_argument("--output", metavar="FOLDER", help="the run folder (default: runs/<recipe>)")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="go on from the newest checkpoint in the run folder if there is one (auto, the default), "
        "start anew (never), or go on from this checkpoint or run folder",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=1800.0,
        metavar="SECONDS",
        help="a rank that stays at one place for so long, or a process that is silent for so long or for two minutes, "
        "ends the job, which names it (default: 1800)",
    )
    parser.add_argument(
        "--paranoid",
        action="store_true",
        help="compare in every step, over the ranks, the weights that all should hold alike",
    )
    parser.set_defaults(run=run)


def seconds(text: str) -> float:
    """What the option of a length of time takes."""
    with contextlib.suppress(ValueError):
        if 1.0 <= float(text) <= 1e6:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 1 to 1000000")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what is trained, and how."""
    parser.add_argument("--recipe", required=True, metavar="NAME", help="see sam-ds recipes; or a recipe.json")
    parser.add_argument(
        "--deepspeed_config",
        metavar="JSON",
        help=f"how it is spread (default: {DEFAULT_CONFIG}; on a processor without bf16: zero2_local_fp32)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of the recipe"
    )
    parser.add_argument(
        "--pretrain_deepspeed_config",
        metavar="JSON",
        help="how its pre-training is spread, of a recipe that has one (default: alike)",
    )
    parser.add_argument(
        "--pretrain_set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of its pre-training"
    )


def add_pretraining_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pretrain_data",
        metavar="FOLDER",
        help="pictures for its pre-training, of a recipe that has one (default: --data and --val)",
    )


def read_recipes(args: argparse.Namespace) -> list[Any]:
    """The recipe that the options name, after the one that it is pre-trained by, if it is.

    Raises:
        UserError: a recipe does not hold together, or options are of a pre-training that there is not.
    """
    from sam_ds import recipes
    from sam_ds.config import overrides

    recipe = overrides.apply(recipes.get(args.recipe), args.set)
    if recipe.pretrain and not recipe.model.init:
        first = overrides.apply(recipes.get(recipe.pretrain), args.pretrain_set, "--pretrain_set")
        if first.pretrain:
            raise UserError(f"pretrain={first.name}: it has a pretrain itself; name a recipe that has none")
        if recipe.train.mirror and first.train.mirror == recipe.train.mirror:
            raise UserError(
                f"train.mirror={recipe.train.mirror} is that of the pre-training too: give it one of its own"
            )
        return [first, recipe]
    given = [name for name, value in vars(args).items() if name.startswith("pretrain_") and value]
    if given:
        why = f"model.init={recipe.model.init} is in its place" if recipe.pretrain else "the recipe has none"
        raise UserError(f"--{given[0]} would do nothing, as there is no pre-training: {why}")
    return [recipe]


def config_names(args: argparse.Namespace, phases: int) -> list[str | None]:
    """The DeepSpeed configs that were named for as many recipes as ``read_recipes`` gives; None for the default."""
    return [args.pretrain_deepspeed_config or args.deepspeed_config, args.deepspeed_config][-phases:]


def read_run_options(args: argparse.Namespace, world: int | None = None) -> tuple[list[Any], list[Any]]:
    """The recipes as ``read_recipes`` has them, and the DeepSpeed config of each, with every number of its batch.

    Args:
        world: the number of ranks (default: those there are).

    Raises:
        UserError: they do not hold together.
    """
    from sam_ds.optim.schedule import peak_lr

    recipes = read_recipes(args)
    world = world or int(os.environ.get("WORLD_SIZE", "1"))  # the launcher's; asking the engine would import torch
    configs = [_config(name, world) for name in config_names(args, len(recipes))]
    for recipe, config in zip(recipes, configs, strict=True):
        peak_lr(recipe.optim, config.global_batch(world))  # refuses what is too large
    return recipes, configs


def _config(name: str | None, world: int) -> Any:
    from sam_ds.config import deepspeed

    if name:
        return deepspeed.load(name).with_world(world)
    from sam_ds.engine import precision

    config = deepspeed.load(precision.local_config())
    # The default is made for two ranks: keep its batch on any number of them.
    batch = config.raw["train_batch_size"]
    share = config.micro_batch * world
    if batch % share:
        config.check_world(world)  # says what would fit
    return dataclasses.replace(config, accumulation=batch // share).with_world(world)


def run(args: argparse.Namespace) -> int:
    signals.hold()  # importing takes seconds
    try:
        return _run(args)
    finally:
        signals.release()


def _run(args: argparse.Namespace) -> int:
    logging.basicConfig(format="%(message)s")
    recipes, configs = read_run_options(args)
    main_rank = os.environ.get("RANK", "0") == "0"
    if main_rank:  # which implementation of each op runs
        logging.getLogger("sam_ds.ops").setLevel(logging.INFO)
    recipe = recipes[-1]
    if recipe.optim.frozen_encoder_steps and not recipe.model.init and len(recipes) == 1 and main_rank:
        logging.warning("the encoder starts frozen and random: model.init names no weights to start from")
    from sam_ds.engine import distributed, precision
    from sam_ds.engine.preemption import stop
    from sam_ds.training.phases import Job, Phase, train_phases

    for note in dict.fromkeys(map(precision.note, configs)):
        if note and main_rank:
            logging.warning(note)
    phases = [Phase(each, config, args.data, args.val) for each, config in zip(recipes, configs, strict=True)]
    if args.pretrain_data:
        phases[0] = dataclasses.replace(phases[0], data=args.pretrain_data, val=None)
    output = Path(args.output or f"runs/{recipe.name}")
    stop.listen()
    signals.release()
    try:
        train_phases(phases, Job(output, args.resume, timedelta(seconds=args.timeout), args.paranoid))
    finally:
        distributed.shut_down()
    return 0
