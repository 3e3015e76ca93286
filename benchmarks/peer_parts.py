"""What the peers of bench_peer_training.py train on: pictures kept in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, on the scale 0 to 255


@dataclass(frozen=True)
class Picture:
    """S is the input's side; h and w are the sides of the part of the loss's grid that shows picture."""

    pixels: Tensor  # uint8 [3, S, S]  zero where padded
    valid: tuple[int, int]  # height and width of the part of the input that shows picture
    truth: Tensor  # bool [O, h, w]
    boxes: Tensor  # float32 [O, 4]  x0 y0 x1 y1 around each mask, in pixels of the input

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + self.truth.nbytes + self.boxes.nbytes


def load_pictures(settings: dict[str, Any], rank: int, world: int) -> list[Picture]:
    """This rank's share of the pictures, decoded and resized."""
    side, grid = settings["model"]["image_size"], settings["grid"]
    stride = loss_stride(settings["recipe"]["loss"]["resolution"], side, grid)
    mine = settings["pictures"][rank::world]
    return [_load(Path(settings["data"]) / stem, masks, side, stride) for stem, masks in mine]


def loss_stride(resolution: str, side: int, grid: int) -> int:
    """Pixels of the input along the side of a pixel of the loss's grid."""
    return 1 if resolution == "input" else side // (4 * grid)


def _load(path: Path, masks: Sequence[int], side: int, stride: int) -> Picture:
    """The longer side becomes ``side``; the rest is padded at the bottom or the right."""
    annotations = json.loads(path.with_suffix(".json").read_text())["annotations"]
    with Image.open(path.with_suffix(".jpg")) as image:
        scale = side / max(image.size)
        source_height, source_width = image.height, image.width
        height, width = (max(1, round(n * scale)) for n in (source_height, source_width))
        shown = np.array(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    pixels = torch.zeros(3, side, side, dtype=torch.uint8)
    pixels[:, :height, :width] = torch.from_numpy(shown).permute(2, 0, 1)
    rows = _source_places(height, source_height, stride)[:, None]
    columns = _source_places(width, source_width, stride)[None]
    rles = [annotations[i]["segmentation"] for i in masks]
    truth = np.stack([coco_mask.decode(rle)[rows, columns] for rle in rles]).astype(bool)  # [O, h, w]
    boxes = torch.from_numpy(coco_mask.toBbox(rles)).float() * scale  # x0 y0 width height
    boxes[:, 2:] += boxes[:, :2]
    return Picture(pixels, (height, width), torch.from_numpy(truth), boxes)


def _source_places(length: int, source: int, stride: int) -> np.ndarray:
    """The pixel of the source under the middle of each pixel of the loss's grid, along one side."""
    middles = (np.arange(-(-length // stride)) + 0.5) * stride
    return np.minimum(middles * source / length, source - 1).astype(int)


def normalize(batch: Sequence[Picture]) -> Tensor:
    """float32 [B, 3, S, S], zero where padded."""
    images = torch.stack([picture.pixels for picture in batch]).float()
    images = images.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1))
    for image, picture in zip(images, batch, strict=True):
        image[:, picture.valid[0] :] = 0
        image[:, :, picture.valid[1] :] = 0
    return images
