"""``sam-ds predict``: the mask that a click or a box means, drawn on the picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sam_ds.cli.loading import PROMPTED, add_model_options, choose_device, load_model
from sam_ds.config.errors import UserError

_EXAMPLE = """examples:
  sam-ds predict picture.jpg --checkpoint runs/tiny --point 120,80 -o out.png
  sam-ds predict picture.jpg --checkpoint runs/tiny --point 120,80 --point 150,90,0 -o out.png   (0: not this)
  sam-ds predict picture.jpg --checkpoint sam_vit_b_01ec64.pth --preset vit_b --box 40,30,200,180 -o out.png
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "predict",
        help="segment one thing in one picture",
        description="Segment what a click or a box means. Coordinates are pixels of the picture as a viewer shows it.",
        epilog=_EXAMPLE,
    )
    parser.add_argument("picture", type=Path, help="a .jpg, .png, …")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run folder, a checkpoint, or a weights file")
    parser.add_argument(
        "--point", action="append", default=[], metavar="X,Y[,LABEL]", help="a click; label 1: this (default), 0: not"
    )
    parser.add_argument("--box", metavar="X0,Y0,X1,Y1", help="a box around it")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the picture with the mask drawn on it")
    parser.add_argument("--mask", type=Path, metavar="FILE", help="also write the mask: a .png, 255 where it is set")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from PIL import Image

    from sam_ds.evaluation.pictures import draw_prediction
    from sam_ds.evaluation.predict import Prompt, predict, read_picture

    points = [_point(text) for text in args.point]
    box = _numbers("--box", args.box, "x0,y0,x1,y1", {4}) if args.box else None
    prompt = Prompt([(x, y) for x, y, _ in points], [label for *_, label in points], box)
    pixels = read_picture(args.picture)
    prompt.check(pixels.shape[:2])  # before the model is loaded, which takes seconds
    device = choose_device(args.device)
    loaded = load_model(args.checkpoint, args.recipe, args.preset, args.set, args.raw)
    if loaded.recipe.task != PROMPTED:
        raise UserError(f"{loaded.weights} was trained for task={loaded.recipe.task}: only a SAM answers to a click")
    answer = predict(loaded.model.to(device), pixels, prompt, device)
    _save(draw_prediction(pixels, answer, prompt), args.output)
    if args.mask:
        _save(Image.fromarray(answer.mask.numpy()).convert("L"), args.mask)
    share = float(answer.mask.float().mean())
    print(f"{args.output}: {share:.1%} of the picture, predicted IoU {answer.iou:.2f}")
    return 0


def _save(picture: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except (OSError, ValueError) as error:  # Pillow: ValueError for a suffix it does not know
        raise UserError(f"cannot write {path}: {error}") from None


def _point(text: str) -> tuple[float, float, int]:
    x, y, *label = _numbers("--point", text, "x,y or x,y,label", {2, 3})
    if label and label[0] not in (0, 1):
        raise UserError(f"--point {text}: the label is 1 (this) or 0 (not this)")
    return x, y, int(label[0]) if label else 1


def _numbers(option: str, text: str, form: str, counts: set[int]) -> Any:
    """The numbers of a text such as "1,2.5". Raises UserError for anything else."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in counts:
        raise UserError(f"{option} {text}: write it as {form}, in pixels of the picture")
    return numbers
