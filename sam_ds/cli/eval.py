"""``sam-ds eval``: how good a model is after some clicks and after a box, beside baselines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_ds.cli.loading import Loaded, add_model_options, choose_device, load_model
from sam_ds.config.folders import make_writable

if TYPE_CHECKING:
    from sam_ds.data.loader import EvalLoader
    from sam_ds.types import SegmentBatch

_EXAMPLE = """examples:
  sam-ds eval runs/tiny --data .cache/synthetic
  sam-ds eval runs/tiny/checkpoints/step_00000600 --data .cache/synthetic --set eval.clicks=1,2,3 --untrained
  sam-ds eval runs/photos --data photos --val more_photos
  sam-ds eval sam_vit_b_01ec64.pth --preset vit_b --data /data/sa1b --set eval.max_pictures=500
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "eval",
        help="measure a model by simulated clicks and boxes",
        description="Measure mIoU and boundary F1 after simulated clicks and a box on the val pictures, beside discs "
        "of the mean mask area at the clicks. Writes eval.json and pictures.",
        epilog=_EXAMPLE,
    )
    parser.add_argument("checkpoint", type=Path, help="a run folder, a checkpoint, or a .pth or .safetensors file")
    parser.add_argument("--data", required=True, help="folder with train/ and val/, or one that a part is held out of")
    parser.add_argument("--val", metavar="FOLDER", help="pictures to evaluate on (default: a part of --data)")
    parser.add_argument("--output", type=Path, help="folder for the results (default: evaluation/ beside the weights)")
    parser.add_argument("--untrained", action="store_true", help="also measure the same model with fresh weights")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from sam_ds.data.index import open_index, open_splits
    from sam_ds.data.loader import EvalLoader
    from sam_ds.evaluation.baseline import AREA_PICTURES, DiscBaseline, mean_area_fraction
    from sam_ds.evaluation.interactive import Predictor, evaluate
    from sam_ds.evaluation.metrics import table
    from sam_ds.evaluation.pictures import Gallery

    device = choose_device(args.device)
    train, val = (open_index(args.data), open_index(args.val)) if args.val else open_splits(args.data)
    loaded = load_model(args.checkpoint, args.recipe, args.preset, args.set, args.raw)
    output = args.output or default_output(loaded.weights)
    make_writable(output)
    recipe, side = loaded.recipe, loaded.model.config.image_size
    loader = EvalLoader(val, recipe.data, side, recipe.eval, 0, 1)
    for_area = replace(recipe.eval, max_pictures=AREA_PICTURES, max_masks=0)
    fraction = mean_area_fraction(EvalLoader(train, recipe.data, side, for_area, 0, 1))
    predictors: dict[str, Predictor] = {"untrained": _untrained(loaded).to(device)} if args.untrained else {}
    predictors |= {"disc": DiscBaseline(fraction), "disc, nearest": DiscBaseline(fraction, nearest=True)}
    columns = {}
    for name, predictor in predictors.items():
        columns[name] = evaluate(predictor, _progress(loader, name), recipe.eval, device).metrics()
    gallery = Gallery(output / "pictures", recipe.eval.pictures)
    model = loaded.model.to(device)
    batches = _Counted(_progress(loader, "model"))
    columns["model"] = evaluate(model, batches, recipe.eval, device, watcher=gallery).metrics()
    print(table(columns))
    results = {"disc_area_fraction": fraction, "pictures": batches.pictures, "metrics": columns}
    _write(output / "eval.json", args, loaded, results)
    print(f"measured on {columns['model']['masks']:.0f} masks of {batches.pictures} pictures")
    print(f"{output}: eval.json and {len(gallery.paths)} pictures drawn")
    return 0


def default_output(weights: Path) -> Path:
    """evaluation/step_… of the run a checkpoint belongs to; beside any other file of weights."""
    step = weights.parent
    if step.parent.name == "checkpoints":
        return step.parent.parent / "evaluation" / step.name
    return weights.parent / "evaluation" / weights.stem


class _Counted:
    """Batches, and how many pictures with masks went by."""

    def __init__(self, batches: Iterable[SegmentBatch]) -> None:
        self._batches = batches
        self.pictures = 0

    def __iter__(self) -> Iterator[SegmentBatch]:
        for batch in self._batches:
            self.pictures += len(set(batch.picture.tolist()))
            yield batch


def _untrained(loaded: Loaded) -> Any:
    """The same model with fresh weights, those a training with this recipe starts from."""
    import torch

    from sam_ds.modeling.presets import build_sam

    torch.manual_seed(loaded.recipe.seed)
    return build_sam(loaded.recipe.model)


def _progress(loader: EvalLoader, name: str) -> Iterable[SegmentBatch]:
    from tqdm import tqdm

    return tqdm(loader, desc=name, unit="batch", leave=False, disable=not sys.stderr.isatty())


def _write(path: Path, args: argparse.Namespace, loaded: Loaded, results: dict[str, Any]) -> None:
    from sam_ds.config import recipe_file
    from sam_ds.tracking.environment import environment

    about = {
        "weights": str(loaded.weights),
        "data": str(args.data),
        "val": args.val,
        "recipe": recipe_file.to_dict(loaded.recipe),
        "environment": environment(),
    }
    path.write_text(json.dumps({**results, **about}, indent=1) + "\n", encoding="utf-8")
