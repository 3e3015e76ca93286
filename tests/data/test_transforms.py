"""One matrix for pixels and masks: what a view shows is what its matrix says it shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sam_ds.config.schema import TransformConfig
from sam_ds.data.pixels import random_color, recolor, show
from sam_ds.data.transforms import View, random_view, visible_part, whole_view, window_view

SIDE = 64
BOXES = np.array([[20.0, 30.0, 40.0, 20.0], [100.0, 10.0, 30.0, 60.0]])
AREAS = np.array([500.0, 1200.0])

ALL = TransformConfig(
    flip=0.5, scale_jitter=(0.5, 2.0), crop=(0.4, 1.2), object_crop=0.4, rotate=40, shear=15, affine_scale=(0.7, 1.4)
)
STRAIGHT = TransformConfig(flip=0.5, scale_jitter=(0.3, 2.0), crop=(0.4, 1.2), object_crop=0.4)


def _smooth(size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """uint8 [h, w, 3] without detail, so that resampling filters agree."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, channels, 5, 6, generator=generator) * 200 + 25
    grown = F.interpolate(noise, size=size, mode="bicubic", align_corners=True)
    return grown[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def _views(config: TransformConfig, size: tuple[int, int], count: int = 40, exact: bool = False) -> list[View]:
    rng = np.random.default_rng(0)
    return [random_view(rng, config, size, SIDE, BOXES, AREAS, exact) for _ in range(count)]


def _shown(pixels: np.ndarray, view: View) -> torch.Tensor:
    out = torch.zeros(3, view.side, view.side, dtype=torch.uint8)
    show(pixels, view, None, out)
    return out


def _looked_up(pixels: np.ndarray, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Every input pixel's colour by its matrix (bilinear), and whether it lies well inside the picture."""
    centres = np.stack([*np.meshgrid(np.arange(view.side) + 0.5, np.arange(view.side) + 0.5), np.ones((SIDE, SIDE))])
    x, y, _ = np.einsum("ij,jhw->ihw", view.to_source(), centres)
    margin = 2.5 * max(1.0, np.sqrt(abs(np.linalg.det(view.to_source()[:2, :2]))))
    height, width = pixels.shape[:2]
    inside = (x > margin) & (x < width - margin) & (y > margin) & (y < height - margin)
    grid = torch.from_numpy(np.stack([2 * x / width - 1, 2 * y / height - 1], -1))[None]
    source = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
    colors = F.grid_sample(source, grid, padding_mode="border", align_corners=False)
    return colors[0].permute(1, 2, 0).numpy(), inside


@pytest.mark.parametrize("config", [STRAIGHT, ALL], ids=["straight", "affine"])
@pytest.mark.parametrize("size", [(120, 200), (200, 160), (50, 40)])
def test_pixels_agree_with_the_matrix(config: TransformConfig, size: tuple[int, int]) -> None:
    pixels = _smooth(size)
    compared = 0
    for view in _views(config, size, exact=True):
        shown = _shown(pixels, view).permute(1, 2, 0).numpy().astype(int)
        expected, inside = _looked_up(pixels, view)
        height, width = view.valid_size
        inside[height:], inside[:, width:] = False, False
        difference = np.abs(shown - expected)[inside]
        # At a crop's edge the filter sees nothing beyond it: up to half a source pixel, as steep as these colours are.
        assert difference.max(initial=0) <= 12 and (not inside.any() or difference.mean() <= 1.5)
        compared += inside.sum()
        assert not shown[height:].any() and not shown[:, width:].any()
    assert compared > 20_000


def test_decoding_smaller_shifts_nothing() -> None:
    """At 1/4 a decoded pixel is the mean of 16: the views must agree with the whole picture's."""
    size = (256, 512)
    pixels = _smooth(size)
    quarter = np.asarray(F.avg_pool2d(torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), 4)[0].permute(1, 2, 0))
    view = window_view(size, SIDE, 37, 11, 256, exact=False)
    assert view.denominator == 4 and view.left % 4 == view.top % 4 == 0
    exact = View(**{**vars(view), "denominator": 1})
    difference = _shown(quarter.round().astype(np.uint8), view).int() - _shown(pixels, exact).int()
    assert difference.abs().max() <= 3


def test_nothing_is_decoded_too_small() -> None:
    for size in [(1500, 2250), (300, 900), (130, 128), (3, 2000)]:
        for view in _views(TransformConfig(crop=(0.05, 1.0)), size):
            longest = max(view.width, view.height)
            assert view.denominator == 1 or longest >= view.denominator * SIDE
            assert view.left % view.denominator == 0 and view.top % view.denominator == 0
            assert view.left + view.width <= size[1] and view.top + view.height <= size[0]
    assert whole_view((1500, 2250), 1024).denominator == 2
    assert whole_view((1500, 2250), 1024, exact=True).denominator == 1


@pytest.mark.parametrize(
    ("size", "valid"), [((480, 640), (48, 64)), ((640, 427), (64, 43)), ((64, 64), (64, 64)), ((1, 500), (1, 64))]
)
def test_evaluation_resizes_and_pads(size: tuple[int, int], valid: tuple[int, int]) -> None:
    view = whole_view(size, SIDE)
    assert view.valid_size == valid
    corners = view.to_source() @ np.array([[0, valid[1]], [0, valid[0]], [1, 1]])
    np.testing.assert_allclose(corners[:2], [[0, size[1]], [0, size[0]]])


def test_flip_stays_at_the_left() -> None:
    pixels = _smooth((60, 40))
    straight = whole_view((60, 40), SIDE)
    flipped = View(**{**vars(straight), "flip": True})
    width = straight.valid_size[1]
    expected = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    expected[:, :, :width] = _shown(pixels, straight)[:, :, :width].flip(-1)
    assert torch.equal(_shown(pixels, flipped), expected)


def test_object_crops_keep_an_object_whole() -> None:
    config = TransformConfig(object_crop=1.0, object_crop_sides=(1.0, 6.0))
    widths = set()
    for view in _views(config, (120, 200), count=60):
        assert visible_part(view, BOXES).max() > 1 - 1e-6
        assert view.width >= SIDE / 8
        widths.add(view.width)
    assert len(widths) > 20


def test_visible_part() -> None:
    view = window_view((100, 100), SIDE, left=40, top=0, window=50, exact=True)
    boxes = np.array([[40.0, 0, 50, 50], [0, 0, 40, 40], [30, 40, 20, 20], [40, 10, 100, 10]])
    np.testing.assert_allclose(visible_part(view, boxes), [1, 0, 0.25, 0.5], atol=1e-9)
    np.testing.assert_allclose(visible_part(View(**{**vars(view), "flip": True}), boxes), [1, 0, 0.25, 0.5], atol=1e-9)


def test_no_settings_no_change() -> None:
    for view in _views(TransformConfig(), (120, 200), count=5):
        assert view == whole_view((120, 200), SIDE)


def test_affine_shows_the_whole_square() -> None:
    for view in _views(TransformConfig(rotate=30), (120, 200), count=5):
        assert view.valid_size == (SIDE, SIDE) and view.shown == (38, SIDE)


def test_color_jitter() -> None:
    image = torch.from_numpy(_smooth((20, 30))).permute(2, 0, 1)
    rng = np.random.default_rng(0)
    assert random_color(rng, TransformConfig()) is None
    same = random_color(rng, TransformConfig(hue=1e-9))
    assert same is not None and torch.equal(recolor(image, same), image)
    bright = random_color(np.random.default_rng(1), TransformConfig(brightness=0.4))
    assert bright is not None
    np.testing.assert_allclose(bright[:, :3], bright[0, 0] * np.eye(3))
    grey = image.float().mean(0, keepdim=True).expand(3, -1, -1).round().byte()
    colors = random_color(np.random.default_rng(1), TransformConfig(saturation=0.8, hue=0.5))
    assert colors is not None and (recolor(grey, colors).int() - grey.int()).abs().max() <= 1  # grey stays grey
    contrast = random_color(np.random.default_rng(2), TransformConfig(contrast=0.5))
    assert contrast is not None
    luma = torch.tensor([0.299, 0.587, 0.114])
    means = [float((i.float().mean((1, 2)) * luma).sum()) for i in (image, recolor(image, contrast))]
    assert abs(means[0] - means[1]) < 2


def test_draws_do_not_depend_on_settings() -> None:
    """Switching the flip on must not move the crops."""
    without, also = TransformConfig(crop=(0.4, 1.0)), TransformConfig(crop=(0.4, 1.0), flip=1.0)
    for a, b in zip(_views(without, (120, 200)), _views(also, (120, 200)), strict=True):
        assert View(**{**vars(a), "flip": True}) == b


def test_a_crop_shows_objects_at_their_size_in_the_whole_input() -> None:
    config, size = TransformConfig(scale_jitter=(0.3, 2.0)), (400, 600)
    for seed in range(20):
        whole, crop = (
            random_view(np.random.default_rng(seed), config, size, side, BOXES, AREAS, exact=True, crop=side / 256)
            for side in (256, 64)
        )
        a, b = np.diag(whole.to_source())[:2], np.diag(crop.to_source())[:2]
        np.testing.assert_allclose(a, b, rtol=0.05)  # windows and what they show are whole pixels
