"""Pictures of what was found beside what is true: boxes, and the class of every pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from torch import Tensor

from sam_ds.evaluation.pictures import enlarged, save_row, titled
from sam_ds.types import UNLABELLED, BoxBatch, LabelBatch

_LIKELY = 0.3  # score of the boxes that are drawn
_BRIGHT = 0.5  # how much of a class's colour is mixed in


class BoxGallery:
    """Draws the first pictures: the true boxes, and those that were found with a good score."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Pictures go to ``folder``, at most ``limit`` of them."""
        self.folder, self.limit = folder, limit
        self.paths: list[Path] = []

    def see(self, batch: BoxBatch, picture: int, boxes: Tensor, labels: Tensor, scores: Tensor) -> None:
        """Draw one picture, while there is room, and keep the file's path."""
        if len(self.paths) >= self.limit:
            return
        image, likely = _valid(batch, picture), scores > _LIKELY
        first, count = int(batch.counts[:picture].sum()), int(batch.counts[picture])
        own = slice(first, first + count)
        panels = [
            _with_boxes(image, batch.boxes[own], batch.labels[own], f"truth: {count} boxes"),
            _with_boxes(
                image, boxes[likely], labels[likely], f"found: {int(likely.sum())} with a score over {_LIKELY}"
            ),
        ]
        self.paths += save_row(panels, self.folder / f"{int(batch.sample_ids[picture]):08d}.png")


class ClassGallery:
    """Draws the first pictures: as they are, their true classes, and those that were found."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Pictures go to ``folder``, at most ``limit`` of them."""
        self.folder, self.limit = folder, limit
        self.paths: list[Path] = []

    def see(self, batch: LabelBatch, picture: int, truth: npt.NDArray[np.uint8], found: npt.NDArray[np.uint8]) -> None:
        """Draw one picture, while there is room, and keep the file's path."""
        if len(self.paths) >= self.limit:
            return
        image = _valid(batch, picture)
        height, width = image.shape[:2]
        panels = [titled(enlarged(image), "picture")]
        for title, labels in (("truth", truth), ("found", found)):
            small = np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
            colored = (image * (1 - _BRIGHT) + _colors(small) * _BRIGHT).astype(np.uint8)
            panels.append(titled(enlarged(np.where((small == UNLABELLED)[..., None], image, colored)), title))
        self.paths += save_row(panels, self.folder / f"{int(batch.sample_ids[picture]):08d}.png")


def _valid(batch: BoxBatch | LabelBatch, picture: int) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3]: the part of the input that shows picture."""
    height, width = batch.valid_sizes[picture].tolist()
    pixels: npt.NDArray[np.uint8] = batch.images[picture, :, :height, :width].permute(1, 2, 0).numpy()
    return pixels


def _with_boxes(image: npt.NDArray[np.uint8], boxes: Tensor, labels: Tensor, title: str) -> Image.Image:
    large = enlarged(image)
    zoom, draw = large.width / image.shape[1], ImageDraw.Draw(large)
    for box, color in zip((boxes * zoom).tolist(), _colors(labels.numpy()).tolist(), strict=True):
        left, top, right, bottom = box
        draw.rectangle([left, top, max(left, right - 1), max(top, bottom - 1)], outline=tuple(color), width=2)
    return titled(large, title)


def _colors(labels: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """A colour a class, uint8 [..., 3]: hues a golden angle apart, so that those of near classes are far."""
    turns = (labels.astype(np.float64) * 0.618034)[..., None] + np.array([0.0, 2 / 3, 1 / 3])
    colors: npt.NDArray[np.uint8] = (127.5 + 127.5 * np.cos(2 * np.pi * turns)).astype(np.uint8)
    return colors
