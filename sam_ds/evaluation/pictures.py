"""Pictures for people: what the model was told, what it answered, and what is true; and curves of a run's metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from sam_ds.evaluation.interactive import Panel
from sam_ds.evaluation.metrics import iou
from sam_ds.evaluation.predict import PredictedMask, Prompt
from sam_ds.evaluation.source import mask_areas
from sam_ds.types import BOTTOM_RIGHT, NEGATIVE, POSITIVE, TOP_LEFT, SegmentBatch

_FILL, _TRUTH, _GREEN, _RED, _BOX = (30, 120, 255), (255, 210, 0), (0, 200, 60), (235, 40, 40), (255, 255, 255)
_SIDE = 384  # small inputs are enlarged until their longer side has at least this many pixels
_TITLE = 16  # pixels of the line above a panel


_logger = logging.getLogger(__name__)


class Gallery:
    """A watcher of ``evaluate``: draws one object of each of the first pictures.

    It is the object of median area, neither the easiest nor the hardest to hit. One PNG an object, side by side: the
    truth, then the answers after one click, after the most clicks, and to the box.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Pictures go to ``folder``, at most ``limit`` of them."""
        self.folder = folder
        self.limit = limit
        self.paths: list[Path] = []
        self._promised = 0

    def wants(self, batch: SegmentBatch) -> set[int]:
        """The object of median area of each picture, while there is room."""
        chosen: set[int] = set()
        areas = mask_areas(batch.runs)
        for picture in sorted(set(batch.picture.tolist())):
            if self._promised == self.limit:
                break
            own = (batch.picture == picture).nonzero()[:, 0]
            chosen.add(int(own[areas[own].argsort()[len(own) // 2]]))
            self._promised += 1
        return chosen

    def see(self, batch: SegmentBatch, mask: int, truth: Tensor, panels: dict[str, Panel]) -> None:
        """Draw the object and keep the file's path."""
        picture = int(batch.picture[mask])
        height, width = batch.valid_sizes[picture].tolist()
        image = batch.images[picture, :, :height, :width].permute(1, 2, 0).numpy()
        truth = truth[:height, :width]
        clicks = [title for title in panels if title != "box"]
        titles = dict.fromkeys([*clicks[:1], *clicks[-1:], *(["box"] if "box" in panels else [])])
        drawn = [overlay(image, truth, truth, title="truth")]
        for title in titles:
            panel = panels[title]
            answer = panel.mask[:height, :width]
            quality = iou(answer.numpy(), truth.numpy())
            name = "box" if title == "box" else f"{title} click" + "s" * (title != "1")
            drawn.append(overlay(image, answer, truth, panel.points, panel.labels, f"{name}: IoU {quality:.2f}"))
        path = self.folder / f"{int(batch.sample_ids[picture]):08d}_{int(batch.mask_ids[mask])}.png"
        self.paths += save_row(drawn, path)


def overlay(
    image: NDArray[np.uint8],
    mask: Tensor,
    truth: Tensor | None = None,
    points: Tensor | None = None,
    labels: Tensor | None = None,
    title: str = "",
) -> Image.Image:
    """A picture with a mask in blue, the true outline in yellow, clicks in green and red, the box in white.

    Args:
        image: uint8 [H, W, 3].
        mask, truth: bool [H, W].
        points, labels: float32 [P, 2] and int64 [P], a prompt in pixels of ``image``.
        title: written above it.
    """
    zoom = -(-_SIDE // max(image.shape[:2]))
    big = image.repeat(zoom, 0).repeat(zoom, 1).astype(np.float32)
    shown = mask.numpy().repeat(zoom, 0).repeat(zoom, 1)
    thick = max(1, round(max(big.shape[:2]) / 400))
    big[shown] = 0.55 * big[shown] + 0.45 * np.array(_FILL)
    big[_outline(shown, thick)] = _FILL
    if truth is not None:
        big[_outline(truth.numpy().repeat(zoom, 0).repeat(zoom, 1), thick)] = _TRUTH
    picture = Image.fromarray(big.astype(np.uint8))
    if points is not None and labels is not None:
        _draw_prompt(ImageDraw.Draw(picture), points.tolist(), labels.tolist(), zoom, thick)
    return titled(picture, title) if title else picture


def draw_prediction(image: NDArray[np.uint8], answer: PredictedMask, prompt: Prompt) -> Image.Image:
    """A picture uint8 [H, W, 3] with the mask found in it and the prompt that asked for it."""
    corners = [] if prompt.box is None else [prompt.box[:2], prompt.box[2:]]
    points = torch.tensor([*prompt.points, *corners])
    labels = torch.tensor([*prompt.labels, *[TOP_LEFT, BOTTOM_RIGHT][: len(corners)]])
    return overlay(image, answer.mask, None, points, labels)


def _outline(mask: NDArray[np.bool_], thick: int) -> NDArray[np.bool_]:
    """The mask's pixels within ``thick`` pixels of its outside."""
    inner = mask
    for _ in range(thick):
        wide = np.pad(inner, 1)
        inner = inner & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    outline: NDArray[np.bool_] = mask & ~inner
    return outline


def _draw_prompt(
    draw: ImageDraw.ImageDraw, points: Sequence[Sequence[float]], labels: Sequence[int], zoom: int, thick: int
) -> None:
    spots = [((x + 0.5) * zoom, (y + 0.5) * zoom) for x, y in points]  # a pixel's centre, enlarged
    corners = [spot for spot, label in zip(spots, labels, strict=True) if label in (TOP_LEFT, BOTTOM_RIGHT)]
    if len(corners) == 2:
        draw.rectangle([*corners[0], *corners[1]], outline=_BOX, width=thick)
    radius = 4 * thick
    for (x, y), label in zip(spots, labels, strict=True):
        if label in (POSITIVE, NEGATIVE):
            colour = _GREEN if label == POSITIVE else _RED
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour, outline="white", width=thick)


def enlarged(image: NDArray[np.uint8]) -> Image.Image:
    """A picture uint8 [H, W, 3], in whole pixels, until it is large enough to look at."""
    zoom = -(-_SIDE // max(image.shape[:2]))
    return Image.fromarray(image.repeat(zoom, 0).repeat(zoom, 1))


def titled(picture: Image.Image, title: str) -> Image.Image:
    """The picture below a line of text."""
    whole = Image.new("RGB", (picture.width, picture.height + _TITLE), "white")
    whole.paste(picture, (0, _TITLE))
    ImageDraw.Draw(whole).text((2, 2), title, fill="black")
    return whole


def _side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    """The pictures in a row, on white."""
    gap = 4
    width = sum(panel.width + gap for panel in panels) - gap
    row = Image.new("RGB", (width, max(panel.height for panel in panels)), "white")
    x = 0
    for panel in panels:
        row.paste(panel, (x, 0))
        x += panel.width + gap
    return row


def save_row(panels: Sequence[Image.Image], path: Path) -> list[Path]:
    """Write pictures side by side; returns the file, or nothing if it cannot be written: a warning says so then."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _side_by_side(panels).save(path)
    except OSError as error:  # no reason to lose what is evaluated
        _logger.warning("not drawn: %s (%s)", path, error.strerror)
        return []
    return [path]


def draw_curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Curves of a run: losses, scores, learning rate and gradient norm, throughput, over the step.

    Args:
        rows: what ``tracking.journal.read_metrics`` gives: a "step" each and any metrics.
        path: of the PNG.
    """
    from matplotlib.figure import Figure  # slow to import; no pyplot, which keeps global state and asks for a display

    names = sorted({name for row in rows for name in row} - {"step", "time"})
    panels = {title: starts for title, starts in _CURVES.items() if any(name.startswith(starts) for name in names)}
    lines = max(1, -(-len(panels) // 3))
    figure = Figure(figsize=(15, 4 * lines), layout="constrained")
    places = figure.subplots(lines, 3, squeeze=False).flatten()
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, starts) in zip(places, panels.items(), strict=False):
        for name in (name for name in names if name.startswith(starts)):
            curve = [(row["step"], row[name]) for row in rows if name in row]
            axes.plot(*zip(*curve, strict=True), label=name, marker="." if len(curve) < 30 else None, linewidth=1)
        axes.set(title=title, xlabel="step", yscale="log" if "loss" in starts else "linear")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


_CURVES = {  # a panel's title, and what its metrics' names begin with
    "loss": "loss",
    "IoU in training": "iou/",
    "mIoU of the evaluation": "eval/miou",
    "loss of the evaluation": "eval/loss",
    "average precision of the evaluation": "eval/ap",
    "learning rate": "lr",
    "gradient norm": "grad_norm",
    "pictures a second": "throughput/images_per_s",
}
