"""``sam-ds check``: look at a training before it costs anything."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from sam_ds.cli.train import add_pretraining_data, add_run_options, read_run_options, seconds
from sam_ds.config import hostfile
from sam_ds.config.errors import UserError

if TYPE_CHECKING:
    from sam_ds.planning.hosts import Findings, Needs

_EXAMPLE = """examples:
  sam-ds check --recipe sam_vit_h --deepspeed_config zero2_a100x256.json --hostfile hostfiles/a100x256.hostfile
  sam-ds check --recipe sam_vit_h --deepspeed_config zero2_a100x256.json --hostfile hostfiles/a100x256.hostfile \\
      --hosts --data /data/sa1b --output /runs/sam_vit_h
  sam-ds check --gradients --recipe tiny
  deepspeed --num_gpus 8 --module sam_ds check --gradients --recipe sam_vit_h --deepspeed_config my.json
"""
# Options of how hosts are asked, and what they are of a ``Cluster``, which knows their defaults.
_ASKING = {"master_addr": "master", "master_port": "port", "python": "python", "timeout": "timeout"}
_PRETRAINING = ("pretrain_deepspeed_config", "pretrain_set", "pretrain_data")
_NOT_FOR_GRADIENTS = ("hostfile", "data", "val", "output", "hosts", *_PRETRAINING, *_ASKING)


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "check",
        help="check a training before it is started: settings, hosts, data, space, gradients",
        description="Check that a recipe and a DeepSpeed config hold together, and that the pictures and the space for "
        "checkpoints are there: here, or, with --hosts, on every host of the hostfile. With --gradients, run one step "
        "on drawn pictures and compare DeepSpeed's gradients with plain autograd's.",
        epilog=_EXAMPLE,
    )
    add_run_options(parser)
    parser.add_argument("--hostfile", metavar="FILE", help="where it is to run: does the batch fit its ranks?")
    parser.add_argument("--data", metavar="FOLDER", help="are there pictures in it?")
    parser.add_argument("--val", metavar="FOLDER", help="are there pictures in it?")
    add_pretraining_data(parser)
    parser.add_argument("--output", metavar="FOLDER", help="can it be written, and do checkpoints fit there?")
    parser.add_argument(
        "--hosts",
        action="store_true",
        help="ask every host over ssh: reached, alike, as many GPUs as slots, in touch with the first host",
    )
    _add_asking(parser)
    parser.add_argument("--gradients", action="store_true", help="compare gradients with plain autograd")
    parser.set_defaults(run=run)


def _add_asking(parser: argparse.ArgumentParser) -> None:
    """The options of ``_ASKING``, which are in the arguments only where they were given."""
    asking = parser.add_argument_group("with --hosts", argument_default=argparse.SUPPRESS)
    asking.add_argument("--master_addr", metavar="ADDRESS", help="as for the launcher")
    asking.add_argument("--master_port", metavar="PORT", type=_port, help="likewise (default: 29500)")
    asking.add_argument("--python", metavar="PATH", help="the hosts' Python (default: this one)")
    asking.add_argument("--timeout", metavar="SECONDS", type=seconds, help="for each host (default: 20)")


def _port(text: str) -> int:
    with contextlib.suppress(ValueError):
        if 1 <= int(text) < 2**16:
            return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to 65535")


def _check_options(args: argparse.Namespace) -> None:
    """Raise UserError for options that would do nothing beside the others."""
    idle = [f"--{name}" for name in _NOT_FOR_GRADIENTS if vars(args).get(name)]
    if args.gradients and idle:
        raise UserError(
            f"--gradients runs one step here, on drawn pictures, and makes no use of {' and '.join(idle)}: "
            "leave either out"
        )
    if args.hosts and not args.hostfile:
        raise UserError("--hosts looks at the hosts of a hostfile: name it with --hostfile")
    idle = [f"--{name}" for name in _ASKING if name in args]
    if idle and not args.hosts:
        raise UserError(f"{' and '.join(idle)} would do nothing: only --hosts asks hosts; give it, or leave that out")


def run(args: argparse.Namespace) -> int:
    _check_options(args)
    hosts = hostfile.load(args.hostfile) if args.hostfile else ()
    recipes, configs = read_run_options(args, hostfile.world_size(hosts) or None)
    from sam_ds.engine import precision
    from sam_ds.optim.schedule import batch_note
    from sam_ds.training import phases

    starts = phases.check(recipes)
    if not hosts:  # it is to run here
        for note in filter(None, map(precision.note, configs)):
            print(f"note: {note}", file=sys.stderr)
    if args.gradients:
        return _gradients(recipes[-1], configs[-1])
    from sam_ds.planning.hosts import look_here

    needs = _needs(args, recipes)
    findings = _look_at(args, hosts, needs) if args.hosts else look_here(needs)
    for note in findings.notes:
        print(f"note: {note}")
    for fault in findings.faults:
        print(f"sam-ds: {fault}", file=sys.stderr)
    if findings.faults:
        return 2
    for recipe, config in zip(recipes, configs, strict=True):
        if note := batch_note(recipe, config.raw["train_batch_size"], config.source):
            print(f"note: {note}")
    for start in starts:
        print(f"starting from {start}")
    for recipe, config in zip(recipes, configs, strict=True):
        print(f"{recipe.name} with {config.source}: the settings hold together")
    if findings.summary:
        print(f"{findings.summary}: all is well")
    return 0


def _look_at(args: argparse.Namespace, hosts: tuple[hostfile.Host, ...], needs: Needs) -> Findings:
    from sam_ds.planning.hosts import Cluster, look_at

    asking: dict[str, Any] = {known: getattr(args, name) for name, known in _ASKING.items() if name in args}
    gpus = os.environ.get("DS_ACCELERATOR") != "cpu"
    return look_at(Cluster(hosts, args.hostfile, gpus=gpus, **asking), needs)


def _needs(args: argparse.Namespace, recipes: list[Any]) -> Needs:
    from sam_ds.planning.hosts import Needs
    from sam_ds.storage import checkpoints
    from sam_ds.training import first_weights, tasks

    data = tuple(folder for folder in (args.pretrain_data, args.data, args.val) if folder)
    if not args.output:
        return Needs(data)
    of_one, of_all = 0, 0
    for recipe in recipes:  # the checkpoints of a pre-training stay
        parameters = first_weights.count(tasks.kit(recipe.task), recipe)
        of_one = max(of_one, checkpoints.space_for_one(recipe, parameters))
        of_all += checkpoints.space_for_all(recipe, parameters)
    return Needs(data, args.output, of_one, of_all)


def _gradients(recipe: Any, config: Any) -> int:
    from sam_ds.engine import distributed
    from sam_ds.engine.gradients import compare_gradients
    from sam_ds.training import first_weights, tasks

    kit = tasks.kit(recipe.task)
    distributed.init()
    try:
        world = distributed.world_size()
        batches = [kit.example(recipe, micro * world + distributed.rank()) for micro in range(config.accumulation)]
        # Past a frozen start, so that every parameter is compared.
        step = recipe.optim.frozen_encoder_steps
        report = compare_gradients(partial(first_weights.build, kit), recipe, config, batches, step)
        if distributed.is_main():
            print(report)
        return 0 if report.passed else 1
    finally:
        distributed.shut_down()
