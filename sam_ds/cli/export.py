"""``sam-ds export``: the weights of a checkpoint as one file with the names of Meta's releases."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_EXAMPLE = """examples:
  sam-ds export runs/tiny -o tiny.pth
  sam-ds export runs/sam_vit_h/checkpoints/step_00090000 -o sam_vit_h.safetensors
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write a checkpoint's weights as .pth or .safetensors",
        description="Write the weights of a run's last checkpoint, or of the checkpoint given, as one file that "
        "segment-anything loads too. Needs neither a GPU nor DeepSpeed.",
        epilog=_EXAMPLE,
    )
    parser.add_argument("source", type=Path, help="a run folder or one of its checkpoints")
    add_raw_option(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="a path that ends in .pth or .safetensors")
    parser.set_defaults(run=run)


def add_raw_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--raw",
        action="store_true",
        help="of a training that keeps a mean of its weights (optim.ema_decay), the weights of the last step instead",
    )


def run(args: argparse.Namespace) -> int:
    from sam_ds.modeling import convert
    from sam_ds.storage.weights import find_weights

    source = find_weights(args.source, args.raw)
    weights = convert.read_weights(source)
    convert.save_weights(weights, args.output)
    print(f"{args.output}: {len(weights)} tensors, {sum(w.numel() for w in weights.values()):,} numbers, from {source}")
    return 0
