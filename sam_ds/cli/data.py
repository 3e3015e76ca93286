"""``sam-ds data``: index a set, look at it, or make one."""

from __future__ import annotations

import argparse
import time
from typing import Any

_EXAMPLE = """examples:
  sam-ds data synth .cache/synthetic --train 400 --val 60
  sam-ds data index /data/sa1b
  sam-ds data index /data/imagenet
  sam-ds data show /data/sa1b --index 3 -o picture.png
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "data",
        help="index a data set, look at it, or make one of drawn scenes",
        description="Index a folder of SA-1B tars, of jpg and json pairs, or of whole pictures; show a picture of it; "
        "or draw a set.",
        epilog=_EXAMPLE,
    )
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)
    index = actions.add_parser("index", help="index a folder anew and report what is wrong with it", epilog=_EXAMPLE)
    index.add_argument("path", help="folder of tars, of jpg and json pairs, or of pictures")
    index.add_argument("--faults", type=int, default=20, metavar="N", help="faults listed (default: 20)")
    show = actions.add_parser("show", help="draw a picture with its masks, and say what is in it", epilog=_EXAMPLE)
    show.add_argument("path", help="folder of tars, of jpg and json pairs, or of pictures")
    show.add_argument("--index", type=int, default=0, metavar="N", help="which picture (default: 0)")
    show.add_argument("-o", "--output", required=True, metavar="FILE", help="the .png to write")
    _add_synth(actions)
    parser.set_defaults(run=run)


def _add_synth(actions: argparse._SubParsersAction[Any]) -> None:
    synth = actions.add_parser(
        "synth", help="draw a set of scenes with exact masks; nothing to do if it is there", epilog=_EXAMPLE
    )
    synth.add_argument("path", help="folder to make train/ and val/ in")
    synth.add_argument("--train", type=int, default=400, help="pictures to train on (default: 400)")
    synth.add_argument("--val", type=int, default=60, help="pictures to evaluate on (default: 60)")
    synth.add_argument("--seed", type=int, default=0, help="another seed, other scenes (default: 0)")
    synth.add_argument("--size", type=int, nargs=2, default=(256, 512), metavar=("MIN", "MAX"), help="sides, in pixels")
    synth.add_argument("--objects", type=int, nargs=2, default=(25, 50), metavar=("MIN", "MAX"), help="shapes a scene")
    synth.add_argument("--tar", action="store_true", help="pack tars as SA-1B ships them")


def run(args: argparse.Namespace) -> int:
    return {"index": _index, "show": _show, "synth": _synth}[args.action](args)


def _index(args: argparse.Namespace) -> int:
    from sam_ds.data.halves import halves
    from sam_ds.data.imagenet import PictureIndex
    from sam_ds.data.index import Index
    from sam_ds.data.scan import has_pairs
    from sam_ds.data.table import build_table

    kind, parts = (Index, [args.path]) if has_pairs(args.path) else (PictureIndex, halves(args.path))
    for part in parts:
        report = build_table(kind, part)
        print(report)
        for finding in report.findings[: args.faults]:
            print(f"  {finding.kind}: {finding.place}: {finding.what}")
        hidden = sum(report.counts.values()) - min(args.faults, len(report.findings))
        if hidden > 0:
            print(f"  and {hidden} more")
    return 0


def _show(args: argparse.Namespace) -> int:
    from sam_ds.data.show import show_sample

    for line in show_sample(args.path, args.index, args.output):
        print(line)
    return 0


def _synth(args: argparse.Namespace) -> int:
    from sam_ds.data.synthetic import SyntheticConfig, synthesize

    config = SyntheticConfig(args.train, args.val, args.seed, tuple(args.size), tuple(args.objects), args.tar)
    start = time.monotonic()
    made = synthesize(args.path, config)
    what = f"{args.train} + {args.val} pictures"
    print(f"{args.path}: {what} in {time.monotonic() - start:.0f} s" if made else f"{args.path}: {what}, there already")
    return 0
