"""Drawing masks from runs gives, to the bit, what decoding and then indexing gives."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch.nn import functional as F

from sam_ds.data import runs
from sam_ds.ops.rasterize import rasterize
from sam_ds.types import MaskRuns

IMPLEMENTATIONS = ["reference", "numba"]


def _masks(count: int, size: tuple[int, int], seed: int) -> torch.Tensor:
    """Random uint8 [count, *size]: coarse to fine noise, some nearly empty, some nearly full."""
    generator = torch.Generator().manual_seed(seed)
    masks = []
    for number in range(count):
        cells = 2 + number % 7
        noise = torch.randn(1, 1, size[0] // cells + 2, size[1] // cells + 2, generator=generator)
        level = (-1.5, 0.0, 0.7, 2.0)[number % 4]
        masks.append(F.interpolate(noise, size=size, mode="bilinear")[0, 0] > level)
    return torch.stack(masks).to(torch.uint8)


def _runs(masks: torch.Tensor) -> MaskRuns:
    size = tuple(masks.shape[1:])
    encoded = coco_mask.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy()))
    ends, offsets = runs.parse([{"size": size, "counts": rle["counts"].decode()} for rle in encoded], size)
    sizes = torch.tensor([size] * len(masks), dtype=torch.int32)
    return MaskRuns(torch.from_numpy(ends), torch.from_numpy(offsets), sizes)


def _join(first: MaskRuns, second: MaskRuns) -> MaskRuns:
    offsets = torch.cat([first.offsets, first.offsets[-1] + second.offsets[1:]])
    return MaskRuns(torch.cat([first.ends, second.ends]), offsets, torch.cat([first.sizes, second.sizes]))


def _by_indexing(masks: torch.Tensor, to_source: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The definition."""
    height, width = masks.shape[1:]
    x, y = torch.arange(size[1]) + 0.5, (torch.arange(size[0]) + 0.5)[:, None]
    out = torch.zeros(len(masks), *size, dtype=torch.uint8)
    for number, m in enumerate(to_source):
        column = ((m[0, 0] * x + m[0, 1] * y) + m[0, 2]).floor()
        row = ((m[1, 0] * x + m[1, 1] * y) + m[1, 2]).floor()
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        picked = masks[number][row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]
        out[number] = picked * inside
    return out


def _matrices(kind: str, count: int, size: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    height, width = size
    matrices = torch.eye(2, 3).repeat(count, 1, 1)
    if kind == "same":
        return matrices
    if kind == "affine":
        matrices[:, :, :2] = torch.randn(count, 2, 2, generator=generator)
        matrices[:, :, 2] = torch.tensor([width, height]) * torch.rand(count, 2, generator=generator)
        return matrices
    scales = torch.rand(count, 2, generator=generator) * 3 + 0.1
    matrices[:, 0, 0], matrices[:, 1, 1] = scales.T
    matrices[:, :, 2] = 40 * torch.randn(count, 2, generator=generator)
    if kind == "flip":
        matrices[:, 0, 0] *= -1
        matrices[:, 0, 2] += width
    if kind == "flip both":
        matrices[:, :, :2] *= -1
        matrices[:, :, 2] += torch.tensor([width, height])
    return matrices


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ["same", "scale", "flip", "flip both", "affine"])
def test_equals_decode_then_index(kind: str, implementation: str) -> None:
    first, second = _masks(16, (61, 97), seed=0), _masks(9, (128, 33), seed=1)
    matrices = torch.cat([_matrices(kind, 16, (61, 97)), _matrices(kind, 9, (128, 33))])
    drawn = rasterize(_join(_runs(first), _runs(second)), matrices, (70, 84), implementation)
    expected = torch.cat([_by_indexing(first, matrices[:16], (70, 84)), _by_indexing(second, matrices[16:], (70, 84))])
    assert expected.any() and torch.equal(drawn, expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_degenerate_masks(implementation: str) -> None:
    empty, full = torch.zeros(5, 7, dtype=torch.uint8), torch.ones(5, 7, dtype=torch.uint8)
    corner = empty.clone()
    corner[4, 6] = 1
    masks = torch.stack([empty, full, corner])
    drawn = rasterize(_runs(masks), torch.eye(2, 3).repeat(3, 1, 1), (8, 8), implementation)
    assert torch.equal(drawn, F.pad(masks, (0, 1, 0, 3)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_masks(implementation: str) -> None:
    none = MaskRuns(
        torch.zeros(0, dtype=torch.int32), torch.zeros(1, dtype=torch.int64), torch.zeros(0, 2, dtype=torch.int32)
    )
    assert rasterize(none, torch.zeros(0, 2, 3), (4, 6), implementation).shape == (0, 4, 6)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:

    module = sys.modules["sam_ds.ops.rasterize"]  # by its name: the function hides it
    masks = _masks(10, (20, 30), seed=2)
    matrices = _matrices("affine", 10, (20, 30))
    whole = rasterize(_runs(masks), matrices, (16, 16), "reference")
    monkeypatch.setattr(module, "_CHUNK_PIXELS", 3 * 16 * 16)
    assert torch.equal(rasterize(_runs(masks), matrices, (16, 16), "reference"), whole)


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="as many 2x3 matrices"):
        rasterize(_runs(_masks(2, (8, 8), seed=0)), torch.eye(2, 3)[None], (8, 8))
    with pytest.raises(ValueError, match="no implementation"):
        rasterize(_runs(_masks(1, (8, 8), seed=0)), torch.eye(2, 3)[None], (8, 8), "cuda")
