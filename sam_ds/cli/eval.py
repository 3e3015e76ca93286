"""``sam-ds eval``: how good a model is, beside baselines: a SAM after some clicks and after a box."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sam_ds.cli.loading import PROMPTED, Loaded, add_model_options, build_model, choose_device, load_model
from sam_ds.config.errors import UserError
from sam_ds.config.folders import make_writable

if TYPE_CHECKING:
    from sam_ds.types import SegmentBatch

_T = TypeVar("_T")
_EXAMPLE = """examples:
  sam-ds eval runs/tiny --data .cache/synthetic
  sam-ds eval runs/tiny/checkpoints/step_00000600 --data .cache/synthetic --set eval.clicks=1,2,3 --untrained
  sam-ds eval runs/photos --data photos --val more_photos
  sam-ds eval sam_vit_b_01ec64.pth --preset vit_b --data /data/sa1b --set eval.max_pictures=500
  sam-ds eval sam_vit_b_01ec64.pth --preset vit_b --data /data/coco --coco
  sam-ds eval sam_vit_b_01ec64.pth --preset vit_b --data /data/coco --coco --boxes boxes.json
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "eval",
        help="measure a model: a SAM by simulated clicks and boxes",
        description="Measure a model on the val pictures. A SAM: mIoU and boundary F1 after simulated clicks and a "
        "box, beside discs of the mean mask area at the clicks; with --coco, the average precision of its masks of "
        "COCO's boxes. Others: what their training measures. Writes eval.json and pictures.",
        epilog=_EXAMPLE,
    )
    parser.add_argument("checkpoint", type=Path, help="a run folder, a checkpoint, or a .pth or .safetensors file")
    parser.add_argument("--data", required=True, help="folder with train/ and val/, or one that a part is held out of")
    parser.add_argument("--val", metavar="FOLDER", help="pictures to evaluate on (default: a part of --data)")
    parser.add_argument("--coco", action="store_true", help="a SAM's masks of boxes; --data is laid out as COCO is")
    parser.add_argument(
        "--boxes", type=Path, metavar="FILE", help="with --coco: a detector's boxes.json (default: the true boxes)"
    )
    parser.add_argument("--output", type=Path, help="folder for the results (default: evaluation/ beside the weights)")
    parser.add_argument("--untrained", action="store_true", help="also measure the same model with fresh weights")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.boxes and not args.coco:
        raise UserError("--boxes belongs to --coco, which measures a SAM's masks of boxes")
    device = choose_device(args.device)
    os.environ.setdefault("DS_ACCELERATOR", device.type)  # before anything imports DeepSpeed, which would choose
    loaded = load_model(args.checkpoint, args.recipe, args.preset, args.set, args.raw)
    output = args.output or default_output(loaded.weights)
    make_writable(output)
    prompted = loaded.recipe.task == PROMPTED
    if args.coco and not prompted:
        raise UserError(f"--coco measures a SAM, and {loaded.weights} is of task={loaded.recipe.task}: leave it out")
    measure = _by_boxes if args.coco else _by_prompts if prompted else _by_task
    results, drawn = measure(args, loaded, device, output / "pictures")
    _write(output / "eval.json", args, loaded, results)
    print(f"{output}: eval.json and {drawn} pictures drawn")
    return 0


def _by_prompts(args: argparse.Namespace, loaded: Loaded, device: Any, pictures: Path) -> tuple[dict[str, Any], int]:
    """What clicks and boxes bring, and how many pictures were drawn."""
    from sam_ds.data.index import open_splits
    from sam_ds.data.loader import EvalLoader
    from sam_ds.evaluation.baseline import AREA_PICTURES, DiscBaseline, mean_area_fraction
    from sam_ds.evaluation.interactive import Predictor, evaluate
    from sam_ds.evaluation.metrics import table
    from sam_ds.evaluation.pictures import Gallery

    train, val = open_splits(args.data, val=args.val)
    recipe, side = loaded.recipe, loaded.model.config.image_size
    loader = EvalLoader(val, recipe.data, side, recipe.eval, 0, 1)
    for_area = replace(recipe.eval, max_pictures=AREA_PICTURES, max_masks=0)
    fraction = mean_area_fraction(EvalLoader(train, recipe.data, side, for_area, 0, 1))
    predictors: dict[str, Predictor] = {"untrained": _untrained(loaded).to(device)} if args.untrained else {}
    predictors |= {"disc": DiscBaseline(fraction), "disc, nearest": DiscBaseline(fraction, nearest=True)}
    columns = {}
    for name, predictor in predictors.items():
        columns[name] = evaluate(predictor, _progress(loader, name), recipe.eval, device).metrics()
    gallery = Gallery(pictures, recipe.eval.pictures)
    model = loaded.model.to(device)
    batches = _Counted(_progress(loader, "model"))
    columns["model"] = evaluate(model, batches, recipe.eval, device, watcher=gallery).metrics()
    print(table(columns))
    print(f"measured on {columns['model']['masks']:.0f} masks of {batches.pictures} pictures")
    results = {"disc_area_fraction": fraction, "pictures": batches.pictures, "metrics": columns}
    return results, len(gallery.paths)


def _by_boxes(args: argparse.Namespace, loaded: Loaded, device: Any, pictures: Path) -> tuple[dict[str, Any], int]:
    """COCO's figures of a SAM's masks, which are written to masks.json; no picture is drawn."""
    from sam_ds.data.annotated import eval_stream
    from sam_ds.data.boxes import BoxMaker
    from sam_ds.data.coco import open_coco
    from sam_ds.evaluation.box_masks import found_marks, masks_of_boxes, true_marks
    from sam_ds.evaluation.coco import coco_table, score_masks, true_masks

    val = open_coco(args.val or args.data, "val")
    truth = true_masks(val)
    marks = found_marks(args.boxes, val) if args.boxes else true_marks(val)
    maker = BoxMaker(val, loaded.recipe.data, loaded.model.config.image_size)
    loader = eval_stream(maker, loaded.recipe.eval, 0, 1)
    models = {"untrained": _untrained(loaded)} if args.untrained else {}
    path, columns = pictures.parent / "masks.json", {}
    for name, model in (models | {"model": loaded.model}).items():
        batches = _progress(loader, name)
        samples, results = masks_of_boxes(model.to(device).eval(), batches, val, marks, device)
        path.write_text(json.dumps(results) + "\n", encoding="utf-8")  # the model's stay
        columns[name] = score_masks(val, truth, samples, results)
    print(coco_table(columns))
    print(f"measured on {len(results)} boxes of {len(samples)} pictures; the model's masks are in {path}")
    return {"pictures": len(samples), "metrics": columns}, 0


def _by_task(args: argparse.Namespace, loaded: Loaded, device: Any, pictures: Path) -> tuple[dict[str, Any], int]:
    """What the training itself measures of a task, and how many pictures were drawn."""
    from sam_ds.engine import distributed
    from sam_ds.training import tasks
    from sam_ds.training.state import RunFolder

    recipe, kit = loaded.recipe, tasks.kit(loaded.recipe.task)
    run = _run_of(loaded.weights)
    known = kit.classes = RunFolder(run).classes() if run else []
    distributed.init()
    try:
        kit.open_data(args.data, args.val)
        if kit.classes and not known:
            print(f"note: no classes.json says which classes {loaded.weights} counts: those of {args.data} are taken")
        columns = kit.baselines(recipe, device)
        if args.untrained:
            untrained = _untrained(loaded).to(device).eval()
            columns["untrained"], _ = kit.evaluate(untrained, recipe, device, pictures / "untrained")
        columns["model"], drawn = kit.evaluate(loaded.model.to(device).eval(), recipe, device, pictures)
    finally:
        distributed.shut_down()
    print(kit.table(columns))
    return {"metrics": columns}, len(drawn)


def default_output(weights: Path) -> Path:
    """evaluation/step_… of the run a checkpoint belongs to; beside any other file of weights."""
    run = _run_of(weights)
    return run / "evaluation" / weights.parent.name if run else weights.parent / "evaluation" / weights.stem


def _run_of(weights: Path) -> Path | None:
    """The folder of the run that a checkpoint belongs to."""
    root = weights.parent.parent
    return root.parent if root.name == "checkpoints" else None


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

    torch.manual_seed(loaded.recipe.seed)
    return build_model(loaded.recipe)


def _progress(batches: Iterable[_T], name: str) -> Iterable[_T]:
    from tqdm import tqdm

    return tqdm(batches, desc=name, unit="batch", leave=False, disable=not sys.stderr.isatty())


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
