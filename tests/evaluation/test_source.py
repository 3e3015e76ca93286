"""Masks at the source's size agree with the long way: whole rasters and two resizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sam_ds.evaluation.source import Box, input_point, mask_areas, select, source_mask, source_view
from sam_ds.types import MaskRuns, SegmentBatch


def random_masks(seed: int, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.random(size) < part for size, part in zip(sizes, (0.5, 0.02, 0.98, 1.0), strict=True)]


def test_source_masks_and_areas_are_those_of_the_raster(make_runs: Callable[..., MaskRuns]) -> None:
    masks = random_masks(0, [(7, 9), (20, 30), (5, 5), (3, 8)])
    masks += [np.zeros((4, 4), bool), np.eye(6, dtype=bool)]
    runs = make_runs(masks)
    assert mask_areas(runs).tolist() == [int(mask.sum()) for mask in masks]
    for index, mask in enumerate(masks):
        found = source_mask(runs, index)
        if not mask.any():
            assert found is None
            continue
        assert found is not None
        rows, columns = np.nonzero(mask)
        assert found.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        whole = found.cut(Box(0, 0, mask.shape[1], mask.shape[0]))
        np.testing.assert_array_equal(whole.numpy(), mask)


def test_select_takes_masks_in_the_given_order(make_runs: Callable[..., MaskRuns]) -> None:
    masks = random_masks(1, [(7, 9), (20, 30), (5, 5), (3, 8)])
    chosen = select(make_runs(masks), [2, 0])
    assert chosen.sizes.tolist() == [[5, 5], [7, 9]]
    assert mask_areas(chosen).tolist() == [masks[2].sum(), masks[0].sum()]
    assert len(select(make_runs(masks), [])) == 0


@pytest.mark.parametrize("size", [(50, 80), (20, 33), (64, 64)])
def test_view_is_resize_cut_resize(size: tuple[int, int]) -> None:
    side, grid = 64, 16
    scale = side / max(size)
    valid = (round(size[0] * scale), round(size[1] * scale))
    logits = torch.randn(3, grid, grid, generator=torch.Generator().manual_seed(0)) - 0.5
    logits[:, 8:] -= 9  # a part where nothing is positive
    big = F.interpolate(logits[None], (side, side), mode="bilinear", align_corners=False)[..., : valid[0], : valid[1]]
    expected = F.interpolate(big, size, mode="bilinear", align_corners=False)[0] > 0
    view = source_view((grid, grid), side, valid, size)
    box = view.box(logits)
    assert box is not None
    found = torch.zeros(3, *size, dtype=torch.bool)
    found[:, box.y0 : box.y1, box.x0 : box.x1] = view.cut(logits, box)
    assert torch.equal(found, expected)
    assert view.box(-torch.ones(1, grid, grid)) is None


def test_what_is_positive_in_the_padding_only_is_nothing() -> None:
    logits = -torch.ones(1, 16, 16)
    logits[:, 14:] = 1
    assert source_view((16, 16), 64, (32, 64), (10, 20)).box(logits) is None


def test_input_point_of_a_mask_smaller_than_a_pixel(make_batch: Callable[..., SegmentBatch]) -> None:
    mask = np.zeros((300, 600), bool)
    mask[201, 403] = True
    batch = make_batch([[mask]])
    assert input_point(batch, 0, Box(403, 201, 404, 202)) == (int(403.5 * 64 / 600), int(201.5 * 32 / 300))
