"""``sam-ds probe``: how well classes can be told from an encoder's features."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_ds.cli.loading import Loaded, add_model_options, build_model, choose_device, load_model

if TYPE_CHECKING:
    import torch

    from sam_ds.data.imagenet import PictureIndex
    from sam_ds.evaluation.probe import Features

_EXAMPLE = """examples:
  sam-ds probe runs/mae_tiny --data pictures_by_class
  sam-ds probe runs/vit_huge14_in21k --data /data/imagenet/train --val /data/imagenet/val --set eval.batch=64
  sam-ds probe mae_pretrain.safetensors --recipe mae_vit_b --data /data/imagenet --max-train 100000 --untrained
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "probe",
        help="measure an encoder by neighbours and by a linear layer on its features",
        description="Tell the classes of pictures from what a trained encoder makes of them, without training it: by "
        "the 20 nearest pictures (DINO's rule) and by logistic regression. The encoder is that of masked autoencoding, "
        "of a classifier or of SAM; a file may hold it alone.",
        epilog=_EXAMPLE,
    )
    parser.add_argument("checkpoint", type=Path, help="a run folder, a checkpoint, or a .pth or .safetensors file")
    parser.add_argument("--data", required=True, help="pictures in a folder or a tar a class")
    parser.add_argument("--val", metavar="FOLDER", help="pictures to ask about (default: a part of --data)")
    parser.add_argument(
        "--max-train",
        type=_count,
        default=0,
        metavar="N",
        help="pictures to learn from (default: all); --set eval.max_pictures=N for those to ask about",
    )
    parser.add_argument("--untrained", action="store_true", help="also measure the same encoder with fresh weights")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_model_options(parser)
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pictures")
    return int(text)


def run(args: argparse.Namespace) -> int:
    from sam_ds.data.imagenet import need_classes, open_picture_splits
    from sam_ds.evaluation.classes import class_table
    from sam_ds.evaluation.probe import probe

    device = choose_device(args.device)
    splits = open_picture_splits(args.data, val=args.val)
    need_classes(*splits)
    loaded = load_model(args.checkpoint, args.recipe, args.preset, args.set, args.raw, _load_encoder)
    models = {"untrained, ": _untrained(loaded)} if args.untrained else {}
    columns: dict[str, dict[str, float]] = {}
    for title, model in (models | {"": loaded.model}).items():
        train, val = _extract(model.to(device).eval(), splits, loaded, args.max_train, device)
        columns |= {title + rule: found for rule, found in probe(train, val, len(splits[0].classes)).items()}
    print(json.dumps(columns, indent=1) if args.json else class_table(columns))
    return 0


def _load_encoder(model: Any, weights: Path) -> None:
    """All that features come from; says what else there is or is not."""
    from sam_ds.evaluation.probe import load_encoder

    handover = load_encoder(model, str(weights))
    if handover.resized or handover.new or handover.left:
        print(handover, file=sys.stderr)  # --json has the output


def _untrained(loaded: Loaded) -> Any:
    import torch

    torch.manual_seed(loaded.recipe.seed)
    return build_model(dataclasses.replace(loaded.recipe, model=dataclasses.replace(loaded.recipe.model, init="")))


def _extract(
    model: Any, splits: tuple[PictureIndex, PictureIndex], loaded: Loaded, max_train: int, device: torch.device
) -> list[Features]:
    """Of the pictures to learn from, and of those to ask about."""
    from tqdm import tqdm

    from sam_ds.data.picture_loader import PictureEvalLoader
    from sam_ds.evaluation.probe import extract

    found = []
    for index, most in zip(splits, (max_train, loaded.recipe.eval.max_pictures), strict=True):
        chosen = dataclasses.replace(loaded.recipe.eval, max_pictures=most)
        loader = PictureEvalLoader(index, loaded.recipe.data, model.config.image_size, chosen, 0, 1)
        batches = tqdm(loader, desc="features", unit="batch", leave=False, disable=not sys.stderr.isatty())
        found.append(extract(model, batches, device))
    return found
