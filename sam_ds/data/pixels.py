"""Pixels of a view: cut, resize with antialiasing, turn, change colours; uint8 in and out."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from sam_ds.config.schema import TransformConfig
from sam_ds.data.transforms import View

Pixels = npt.NDArray[np.uint8]

_GREY = np.array([0.299, 0.587, 0.114])  # luma of ITU-R BT.601


def show(pixels: Pixels, view: View, color: npt.NDArray[np.float64] | None, out: Tensor) -> None:
    """Write the model's input.

    Args:
        pixels: uint8 [h, w, 3], the whole picture, decoded at 1 / view.denominator.
        color: float64 [3, 4] from ``random_color``, or None.
        out: uint8 [3, side, side], zero on entry; stays so where there is no picture.
    """
    height, width = view.valid_size
    shown = _straight(pixels, view) if view.warp is None else _warped(pixels, view)
    out[:, :height, :width] = shown if color is None else recolor(shown, color)


def _straight(pixels: Pixels, view: View) -> Tensor:
    part = cut(pixels, (view.left, view.top, view.left + view.width, view.top + view.height), view.denominator)
    shown = resize(part, view.shown)
    return shown.flip(-1) if view.flip else shown


def cut(pixels: Pixels, box: tuple[int, int, int, int], denominator: int) -> Tensor:
    """uint8 [1, 3, h, w] of a box (left, top, right, bottom) of the source, widened to decoded pixels."""
    left, top, right, bottom = box[0] // denominator, box[1] // denominator, *(-(-x // denominator) for x in box[2:])
    return torch.from_numpy(pixels[top:bottom, left:right]).permute(2, 0, 1)[None]


def resize(part: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """uint8 [1, 3, h, w] to uint8 [3, height, width], antialiased. Its bicubic is Pillow's, to a rounding."""
    if part.shape[2:] == size:
        return part[0]
    return F.interpolate(part, size=size, mode=mode, antialias=True)[0]


def _warped(pixels: Pixels, view: View) -> Tensor:
    """Resize what the input sees of the picture to the input's scale, antialiased, then look every pixel up in it."""
    matrix = view.to_source()
    corners = matrix @ np.array([[0, view.side, 0, view.side], [0, 0, view.side, view.side], [1, 1, 1, 1]])
    d = view.denominator
    height, width = pixels.shape[0] * d, pixels.shape[1] * d
    left, top = (max(0, math.floor(c.min() - d)) // d * d for c in corners[:2])
    right, bottom = (math.ceil(c.max() + d) // d * d + d for c in corners[:2])
    right, bottom = min(right, width), min(bottom, height)
    if right <= left or bottom <= top:
        return torch.zeros(3, 1, 1, dtype=torch.uint8)  # none of it is in view
    # The affine change's own scale counts too: one step in the input is this many source pixels.
    step = math.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    size = max(1, round((bottom - top) / step)), max(1, round((right - left) / step))
    part = resize(cut(pixels, (left, top, right, bottom), d), size)
    # grid_sample counts from -1 to 1 across the part, borders included (align_corners=False).
    to_unit = np.array([[2 / (right - left), 0, -1 - 2 * left / (right - left)], [0, 2 / (bottom - top), 0], [0, 0, 1]])
    to_unit[1, 2] = -1 - 2 * top / (bottom - top)
    from_unit = np.array([[view.side / 2, 0, view.side / 2], [0, view.side / 2, view.side / 2], [0, 0, 1]])
    theta = torch.from_numpy((to_unit @ matrix @ from_unit)[:2]).float()
    grid = F.affine_grid(theta[None], [1, 3, view.side, view.side], align_corners=False)
    warped = F.grid_sample(part[None].float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return warped[0].round().to(torch.uint8)


def random_color(rng: np.random.Generator, config: TransformConfig) -> npt.NDArray[np.float64] | None:
    """Brightness, then contrast, saturation and hue, all linear in RGB, as one float64 [3, 4] matrix.

    The last column is what the mean colour is multiplied with (contrast is a change about the picture's mean grey).
    Hue turns the colour about the grey axis.
    """
    brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4) * (
        config.brightness,
        config.contrast,
        config.saturation,
        config.hue,
    )
    if not (config.brightness or config.contrast or config.saturation or config.hue):
        return None
    linear = (1 + brightness) * (1 + contrast) * np.eye(3)
    saturate = (1 + saturation) * np.eye(3) - saturation * np.outer(np.ones(3), _GREY)
    turn = saturate @ _about_grey(2 * math.pi * hue)
    offset = turn @ np.ones(3) * (1 + brightness) * -contrast  # times the mean grey
    return np.column_stack([turn @ linear, offset])


def _about_grey(angle: float) -> npt.NDArray[np.float64]:
    """Rotation about (1, 1, 1) by ``angle`` radians (Rodrigues)."""
    axis = 1 / math.sqrt(3)
    cross = axis * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    turn: npt.NDArray[np.float64] = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) / 3
    return turn


def recolor(image: Tensor, color: npt.NDArray[np.float64]) -> Tensor:
    """Apply a matrix of ``random_color`` to uint8 [3, h, w]."""
    matrix = torch.from_numpy(color).float()
    flat = image.flatten(1).float()  # [3, h * w]
    grey = flat.mean(1) @ torch.from_numpy(_GREY).float()
    changed = torch.addmm((matrix[:, 3] * grey)[:, None], matrix[:, :3], flat)
    return changed.round_().clamp_(0, 255).to(torch.uint8).view(image.shape)
