"""What part of a picture the model is shown, and how: one matrix says it for pixels and for masks alike.

A square window of the source becomes the model's input. Resize-and-pad is the window as long as the picture's longer
side; a crop, large-scale jitter and a crop around an object are smaller or larger windows somewhere else. A window
that reaches beyond the picture starts at its top-left, so the padding is always at the bottom and at the right. A
flip mirrors the part that shows picture; the affine change turns, shears and scales the whole input about its middle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sam_ds.config.schema import TransformConfig

Floats = npt.NDArray[np.float64]

# A crop around an object never shows fewer source pixels than this part of the input's side: beyond it there is
# nothing in the pixels but the interpolation.
_LARGEST_ZOOM = 8.0


@dataclass(frozen=True)
class View:
    """A part of a picture as the model's square input."""

    left: int  # the shown part of the source, in its pixels; it lies within the picture
    top: int
    width: int
    height: int
    shown: tuple[int, int]  # height and width in the input that this part is resized to, at the top-left
    side: int  # of the input
    denominator: int  # the JPEG decoder may shrink by this: no input pixel then sees less than one decoded pixel
    flip: bool = False
    warp: Floats | None = None  # [3, 3] from the input to the input before the affine change

    @property
    def valid_size(self) -> tuple[int, int]:
        """Height and width of the part of the input that shows picture; an affine change may show it anywhere."""
        return self.shown if self.warp is None else (self.side, self.side)

    def to_source(self) -> Floats:
        """float64 [3, 3]: from the input's to the source's continuous coordinates (a pixel's centre is at .5)."""
        height, width = self.shown
        matrix = np.diag([self.width / width, self.height / height, 1.0])
        matrix[:2, 2] = self.left, self.top
        if self.flip:
            matrix = matrix @ np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]])
        return matrix if self.warp is None else matrix @ self.warp


def whole_view(size: tuple[int, int], side: int, exact: bool = False) -> View:
    """The longer side to ``side``, padding at the bottom or the right: what evaluation sees."""
    return window_view(size, side, 0, 0, max(size), exact)


def window_view(size: tuple[int, int], side: int, left: int, top: int, window: int, exact: bool) -> View:
    """Show the square of ``window`` source pixels at (left, top) of a picture of ``size`` (height, width)."""
    height, width = size
    denominator = 1 if exact else decode_scale(size, window, side)
    # A decoded pixel is `denominator` source pixels: the window starts on one.
    left = 0 if window >= width else min(left, width - window) // denominator * denominator
    top = 0 if window >= height else min(top, height - window) // denominator * denominator
    shown_width, shown_height = min(window, width - left), min(window, height - top)
    shown = _resized(shown_height, side / window, side), _resized(shown_width, side / window, side)
    return View(left, top, shown_width, shown_height, shown, side, denominator)


def _resized(length: int, scale: float, side: int) -> int:
    return min(side, max(1, int(length * scale + 0.5)))


def decode_scale(size: tuple[int, int], window: int, side: int) -> int:
    """The denominator that a picture's decoder may shrink by if ``window`` of its pixels become ``side``."""
    return next(d for d in (8, 4, 2, 1) if d == 1 or (window >= d * side and min(size) >= d))


def random_view(
    rng: np.random.Generator,
    config: TransformConfig,
    size: tuple[int, int],
    side: int,
    boxes: Floats,
    areas: Floats,
    exact: bool = False,
    crop: float = 1.0,
) -> View:
    """Draw a view for training. The number of draws does not depend on the outcome, so settings stay comparable.

    Args:
        size: height and width of the picture.
        side: of the view.
        crop: the part of the model's input that a view is, by its side. Objects keep the size that they would have
            in the whole input.
        boxes: float [O, 4], x, y, width and height of every mask that may be shown, in source pixels.
        areas: float [O], their pixels.
    """
    u = rng.random(8)
    if u[0] < config.object_crop:
        chosen = int(u[1] * len(areas))
        window = _object_window(u[2], config, side, max(size), boxes[chosen], areas[chosen])
        x, y, width, height = boxes[chosen]
        left, top = x - u[3] * (window - width), y - u[4] * (window - height)  # the object anywhere, but whole
    else:
        zoom = _between(u[1], config.crop) / _between(u[2], config.scale_jitter)
        window = max(size) * zoom * crop
        left, top = u[3] * (size[1] - window), u[4] * (size[0] - window)
    window = max(1, round(window))
    view = window_view(size, side, max(0, round(left)), max(0, round(top)), window, exact)
    warp = _affine(rng.random(3), config, view.shown)
    return View(**{**vars(view), "flip": bool(u[5] < config.flip), "warp": warp})


def _between(u: float, limits: tuple[float, float]) -> float:
    return limits[0] + u * (limits[1] - limits[0])


def _object_window(u: float, config: TransformConfig, side: int, longest: int, box: Floats, area: float) -> float:
    """Side of a window around an object, uniform in the logarithm; it never cuts the object or zooms without end."""
    low, high = config.object_crop_sides
    window = math.sqrt(area) * math.exp(_between(u, (math.log(low), math.log(high))))
    return float(min(max(window, *box[2:], side / _LARGEST_ZOOM), longest))


def _affine(u: Floats, config: TransformConfig, shown: tuple[int, int]) -> Floats | None:
    """From the changed input back to the input: turn, shear along x, scale, about the middle of what is shown."""
    if config.rotate == 0 and config.shear == 0 and config.affine_scale == (1.0, 1.0):
        return None
    turn, shear = math.radians(config.rotate) * (2 * u[0] - 1), math.radians(config.shear) * (2 * u[1] - 1)
    scale = _between(u[2], config.affine_scale)
    cos, sin = math.cos(turn), math.sin(turn)
    forward = scale * np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, math.tan(shear)], [0, 1]])
    middle = np.array([shown[1], shown[0]]) / 2
    matrix = np.eye(3)
    matrix[:2, :2] = np.linalg.inv(forward)
    matrix[:2, 2] = middle - matrix[:2, :2] @ middle
    return matrix


def visible_part(view: View, boxes: Floats) -> Floats:
    """How much of every box lies in the view, float [O] from 0 to 1; ``boxes`` as of ``boxes_in_view``."""
    return boxes_in_view(view, boxes)[1]


def boxes_in_view(view: View, boxes: Floats) -> tuple[Floats, Floats]:
    """Boxes as the input shows them, cut to the part of it that shows picture, and how much of every box that is.

    Args:
        boxes: float [O, 4], x, y, width and height in the source. Under an affine change it is the box around the
            changed box that counts.

    Returns:
        float [O, 4], left, top, right and bottom in the input's pixels; and float [O] from 0 to 1.
    """
    inverse = np.linalg.inv(view.to_source())
    x, y, width, height = boxes.T
    corners = np.stack([[x, x + width, x, x + width], [y, y, y + height, y + height], np.ones((4, len(x)))])
    moved = np.einsum("ij,jko->iko", inverse[:2], corners)  # [2, 4, O]
    low, high = moved.min(1), moved.max(1)  # [2, O]
    limits = np.array([[view.valid_size[1]], [view.valid_size[0]]])
    seen_low, seen_high = np.clip(low, 0, limits), np.clip(high, 0, limits)
    part: Floats = ((seen_high - seen_low) / np.maximum(high - low, 1e-9)).prod(0)
    return np.concatenate([seen_low, seen_high]).T, part
