"""What part of a whole picture is shown: random resized crops for training, the middle for evaluation."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from sam_ds.config.schema import TransformConfig

_TRIES = 10
# Evaluation cuts ``side`` from the middle of a picture whose shorter side was resized to side / _MIDDLE: 224 of 256,
# as ImageNet's models were evaluated from AlexNet on, and MAE's fine-tuning (there bicubic, too).
_MIDDLE = 0.875
_LONGEST = 8  # of a picture's sides, in multiples of the shorter one: what lies beyond is never shown


class Box(NamedTuple):
    """A part of a picture, in its pixels."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def shorter(self) -> int:
        return min(self.right - self.left, self.bottom - self.top)


def random_resized_crop(rng: np.random.Generator, config: TransformConfig, size: tuple[int, int]) -> Box:
    """A box of random area, shape and place, by the rule of torchvision's and timm's RandomResizedCrop.

    The area is uniform in ``config.area``, width by height uniform in its logarithm in ``config.aspect``. A box that
    does not fit is drawn again, ten times at most; then it is the largest one in the middle whose shape is allowed.
    The number of draws does not depend on the outcome.

    Args:
        size: height and width of the picture.
    """
    height, width = size
    low, high = config.aspect
    shapes, places = rng.random((_TRIES, 2)), rng.random(2)
    for area_at, aspect_at in shapes:
        area = (config.area[0] + area_at * (config.area[1] - config.area[0])) * height * width
        aspect = low * (high / low) ** aspect_at
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(places[0] * (width - w + 1)), int(places[1] * (height - h + 1))
            return Box(left, top, left + w, top + h)
    w, h = min(width, max(1, round(height * high))), min(height, max(1, round(width / low)))
    return _middle(size, h, w)


def _middle(size: tuple[int, int], height: int, width: int) -> Box:
    left, top = (size[1] - width) // 2, (size[0] - height) // 2
    return Box(left, top, left + width, top + height)


class Whole(NamedTuple):
    """How a picture is evaluated."""

    seen: Box  # all of the picture, but for the ends of very long ones
    resized: tuple[int, int]  # the height and width that this becomes
    middle: Box  # the square that is cut from that


def evaluated(size: tuple[int, int], side: int) -> Whole:
    """The middle of a picture of ``size`` (height, width), at the scale that evaluation looks at."""
    longest = min(size) * _LONGEST
    seen = _middle(size, min(size[0], longest), min(size[1], longest))
    height, width = seen.bottom - seen.top, seen.right - seen.left
    shorter = int(side / _MIDDLE)
    resized = shorter * height // min(size), shorter * width // min(size)
    return Whole(seen, resized, _middle(resized, side, side))
