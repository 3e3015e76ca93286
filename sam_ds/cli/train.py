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
from sam_ds.config.errors import LostRanksError

_EXAMPLE = """examples:
  sam-ds train --recipe tiny --data .cache/synthetic
  sam-ds train --recipe tiny --data photos --output runs/photos --set optim.lr=1e-3 --set train.steps=2000
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
    parser.add_argument("--deepspeed_config", metavar="JSON", help=f"how it is spread (default: {DEFAULT_CONFIG})")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of the recipe"
    )


def read_run_options(args: argparse.Namespace, world: int | None = None) -> tuple[Any, Any]:
    """The recipe and the DeepSpeed config that the options name, for ``world`` ranks (default: those there are).

    Raises:
        UserError: they do not hold together.
    """
    from sam_ds import recipes
    from sam_ds.config import deepspeed, overrides
    from sam_ds.optim.schedule import peak_lr

    recipe = overrides.apply(recipes.get(args.recipe), args.set)
    world = world or int(os.environ.get("WORLD_SIZE", "1"))  # the launcher's; asking the engine would import torch
    if args.deepspeed_config:
        config = deepspeed.load(args.deepspeed_config)
        config.check_world(world)
    else:
        # The default is made for two ranks: keep its batch on any number of them.
        config = deepspeed.load(DEFAULT_CONFIG)
        batch = config.raw["train_batch_size"]
        share = config.micro_batch * world
        if batch % share:
            config.check_world(world)  # says what would fit
        config = dataclasses.replace(config, accumulation=batch // share)
    peak_lr(recipe.optim, config.global_batch(world))  # refuses what is too large
    return recipe, config


def run(args: argparse.Namespace) -> int:
    signals.hold()  # importing takes seconds
    try:
        return _run(args)
    finally:
        signals.release()


def _run(args: argparse.Namespace) -> int:
    logging.basicConfig(format="%(message)s")
    recipe, config = read_run_options(args)
    main_rank = os.environ.get("RANK", "0") == "0"
    if main_rank:  # which implementation of each op runs
        logging.getLogger("sam_ds.ops").setLevel(logging.INFO)
    if recipe.optim.frozen_encoder_steps and not recipe.model.init and main_rank:
        logging.warning("the encoder starts frozen and random: model.init names no weights to start from")
    from sam_ds.engine import distributed
    from sam_ds.engine.preemption import Preempted, stop
    from sam_ds.training.loop import train
    from sam_ds.training.run import open_run

    output = Path(args.output or f"runs/{recipe.name}")
    stop.listen()
    signals.release()
    try:
        training = open_run(
            recipe,
            config,
            args.data,
            args.val,
            output,
            args.resume,
            timeout=timedelta(seconds=args.timeout),
            paranoid=args.paranoid,
        )
        error: BaseException | None = None
        try:
            train(training)
        except Preempted as stopped:
            training.progress.say(f"{stopped}: the same command goes on from there")
        except BaseException as raised:
            error = raised
            if distributed.says_ranks_are_lost(raised):
                error = LostRanksError(f"other ranks have gone ({str(raised).splitlines()[0]})")
                raise error from raised
            raise
        finally:
            training.close(error)
        training.progress.say(f"all of it is in {output}")
    finally:
        distributed.shut_down()
    return 0
