"""Drawn scenes: shapes that hide one another on a textured ground, and which pixel belongs to which.

A shape is a condition on polar coordinates in its own frame. It is painted over what is there, so the visible part of
every shape is known to the pixel. Light varies over the picture and over every shape, surfaces have a texture, and
there is noise. Shapes have strong colours and lie on a greyish ground, with few exceptions: the scenes are there to see
within minutes that a model learns, not to tell good models apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_FAMILIES = {"ellipse": 0.25, "polygon": 0.25, "blob": 0.25, "star": 0.15, "ring": 0.06, "strip": 0.04}  # and how often
_RADII = (0.03, 0.16)  # smallest and largest, of the picture's shorter side
_LEAST_RADII = (6.0, 12.0)  # pixels, however small the picture
_NOISE_SIDE = 640


@dataclass(frozen=True)
class Scene:
    pixels: npt.NDArray[np.uint8]  # [H, W, 3]
    labels: npt.NDArray[np.int32]  # [H, W]  0: ground; k: the k-th shape from below


class Painter:
    """Paints scenes. The noise that textures are cut from is made once."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._noise = [_smooth_noise(rng, cell) for cell in (2, 5, 12, 40)]

    def paint(self, rng: np.random.Generator, size: tuple[int, int], num_shapes: int) -> Scene:
        """A scene of ``size`` (height, width). Every choice comes from ``rng``."""
        height, width = size
        canvas = self._texture(rng, size, rng.uniform(60, 195) + rng.uniform(-15, 15, 3))  # [H, W, 3], greyish
        labels = np.zeros(size, np.int32)
        # Large shapes first, so that most of them stay to be seen.
        low, high = (max(part * min(size), least) for part, least in zip(_RADII, _LEAST_RADII, strict=True))
        radii = np.sort(np.exp(rng.uniform(math.log(low), math.log(high), num_shapes)))[::-1]
        for label, radius in enumerate(radii, start=1):
            self._add(rng, canvas, labels, label, float(radius))
        canvas *= _light(rng, size)[..., None]
        canvas += rng.normal(0, rng.uniform(1, 6), (height, width, 1)).astype(np.float32)
        return Scene(canvas.clip(0, 255).astype(np.uint8), labels)

    def _add(
        self, rng: np.random.Generator, canvas: Floats, labels: npt.NDArray[np.int32], label: int, radius: float
    ) -> None:
        height, width = labels.shape
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        left, right = max(0, int(x - radius)), min(width, int(x + radius) + 1)
        top, bottom = max(0, int(y - radius)), min(height, int(y + radius) + 1)
        rows, columns = np.ogrid[top:bottom, left:right]
        inside, distance = _shape(rng, (columns - x) / radius, (rows - y) / radius)
        under = canvas[top:bottom, left:right][inside]
        color = _vivid(rng)
        if len(under) and rng.random() < 0.02:  # much like what it lies on
            color = under.mean(0) + rng.normal(0, 18, 3)
        surface = self._texture(rng, inside.shape, color)
        surface *= (1 - rng.uniform(0, 0.3) * distance)[..., None]  # darker to the rim, as round things are
        canvas[top:bottom, left:right][inside] = surface[inside]
        labels[top:bottom, left:right][inside] = label

    def _texture(self, rng: np.random.Generator, size: tuple[int, int], color: npt.NDArray[np.float64]) -> Floats:
        """float32 [h, w, 3]: a colour, mixed with another one along noise or stripes."""
        height, width = size
        top, left = rng.integers(0, _NOISE_SIDE - height + 1), rng.integers(0, _NOISE_SIDE - width + 1)
        pattern = self._noise[rng.integers(len(self._noise))][top : top + height, left : left + width]
        if rng.random() < 0.3:
            angle, period = rng.uniform(0, math.pi), rng.uniform(4, 24)
            rows, columns = np.ogrid[:height, :width]
            waves = np.sin((columns * math.cos(angle) + rows * math.sin(angle)) * (2 * math.pi / period))
            pattern = waves.astype(np.float32)
        contrast = rng.normal(0, 10, 3) * rng.uniform(0, 1)
        surface: Floats = color.astype(np.float32) + pattern[..., None] * contrast.astype(np.float32)
        return surface


def _vivid(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A colour far from grey: its channels span at least 100."""
    while True:
        color = rng.uniform(10, 245, 3)
        if np.ptp(color) >= 100:
            return color


def _smooth_noise(rng: np.random.Generator, cell: int) -> Floats:
    """float32 [side, side], about -1.7 to 1.7: random values ``cell`` pixels apart, linear between them."""
    coarse = rng.uniform(-1.7, 1.7, (_NOISE_SIDE // cell + 2,) * 2)
    at = np.arange(_NOISE_SIDE) / cell
    low, part = at.astype(int), at % 1
    lines = coarse[low] * (1 - part)[:, None] + coarse[low + 1] * part[:, None]
    noise: Floats = (lines[:, low] * (1 - part) + lines[:, low + 1] * part).astype(np.float32)
    return noise


def _light(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """float32 [H, W]: brightness falls off along one direction."""
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.25)
    rows, columns = np.ogrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    light: Floats = (1 + strength * (columns * math.cos(angle) + rows * math.sin(angle)) / 1.4).astype(np.float32)
    return light


def _shape(rng: np.random.Generator, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[Bools, Floats]:
    """Which points belong to a random shape, and how far from its middle they are (0 to 1).

    Args:
        x, y: coordinates that broadcast to [h, w]; the shape lies within the unit circle.
    """
    family = str(rng.choice(list(_FAMILIES), p=list(_FAMILIES.values())))
    turn, squeeze = rng.uniform(0, 2 * math.pi), rng.uniform(0.25, 0.9)
    u = (x * math.cos(turn) + y * math.sin(turn)).astype(np.float32)
    v = ((y * math.cos(turn) - x * math.sin(turn)) / squeeze).astype(np.float32)
    radius = np.hypot(u, v)
    if family == "strip":
        bend, thickness = rng.uniform(-0.5, 0.5), rng.uniform(0.1, 0.3)
        inside = (np.abs(v - bend * (u * u - 0.5)) < thickness) & (np.abs(u) < 0.85)
    else:
        outline = _outline(rng, family, np.arctan2(v, u) if family not in ("ellipse", "ring") else u)
        inside = radius < outline
        if family == "ring":
            inside &= radius > rng.uniform(0.35, 0.65)
    return inside & (x * x + y * y < 1), np.minimum(radius, 1)


def _outline(rng: np.random.Generator, family: str, angle: Floats) -> Floats | float:
    """The radius at every angle."""
    if family == "blob":
        waves = [rng.uniform(0, 0.16) * np.cos(k * angle + rng.uniform(0, 2 * math.pi)) for k in range(2, 6)]
        return np.asarray(0.72 + sum(waves), np.float32)
    if family in ("polygon", "star"):
        corners = int(rng.integers(3, 8))
        sector = math.pi / corners
        within = np.abs(angle % (2 * sector) - sector)  # 0 at the middle of a side, `sector` at a corner
        if family == "polygon":
            return np.asarray(math.cos(sector) / np.cos(within), np.float32)
        return np.asarray(rng.uniform(0.4, 0.65) + 0.35 * within / sector, np.float32)
    return 1.0
