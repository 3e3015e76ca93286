"""Masks in the pixels of the picture they were drawn on, where quality is measured.

An SA-1B picture is 3.4 million pixels and most masks are small, so nothing is ever made at full size: the truth is
rasterised in its bounding box, and of a prediction only the part that can be positive is resized. Resizing is linear
and separable, so the whole way of a prediction (logits to the model's input, cut of the padding, resize to the
source) is one matrix for the rows and one for the columns, and any rows of them give exactly those rows of the result.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sam_ds.ops.rasterize import rasterize
from sam_ds.types import MaskRuns, SegmentBatch


class Box(NamedTuple):
    """Half-open, in pixels: columns x0 … x1 - 1, rows y0 … y1 - 1."""

    x0: int
    y0: int
    x1: int
    y1: int

    def grown(self, margin: int, size: tuple[int, int]) -> Box:
        """With ``margin`` more pixels on every side, as far as a picture of height and width ``size`` goes."""
        height, width = size
        return Box(
            max(self.x0 - margin, 0),
            max(self.y0 - margin, 0),
            min(self.x1 + margin, width),
            min(self.y1 + margin, height),
        )

    def joined(self, other: Box) -> Box:
        """The smallest box around both."""
        (ax, ay, ar, ab), (bx, by, br, bb) = self, other
        return Box(min(ax, bx), min(ay, by), max(ar, br), max(ab, bb))


class SourceMask(NamedTuple):
    """One object's true mask: what its bounding box holds, and the box's place in the picture."""

    bits: Tensor  # bool [box height, box width], host memory
    box: Box
    size: tuple[int, int]  # height and width of the picture

    def cut(self, box: Box) -> Tensor:
        """bool [height, width] of a ``box`` that holds the mask's own box."""
        own = self.box
        return F.pad(self.bits, (own.x0 - box.x0, box.x1 - own.x1, own.y0 - box.y0, box.y1 - own.y1))


def select(runs: MaskRuns, masks: Iterable[int]) -> MaskRuns:
    """Some of the masks, in the given order."""
    chosen = list(masks)
    bounds = runs.offsets.tolist()
    parts = [runs.ends[bounds[o] : bounds[o + 1]] for o in chosen]
    lengths = torch.tensor([0] + [len(part) for part in parts])
    ends = torch.cat(parts) if parts else runs.ends[:0]
    return MaskRuns(ends, lengths.cumsum(0), runs.sizes[chosen])


def mask_areas(runs: MaskRuns) -> Tensor:
    """int64 [O]: set pixels of every mask, read off its runs."""
    lengths = runs.offsets.diff()
    mask = torch.repeat_interleave(torch.arange(len(runs)), lengths)  # [R]
    place = torch.arange(runs.ends.numel()) - runs.offsets[mask]
    sign = torch.where(place % 2 == 1, 1, -1)  # a set run stops at an odd place and starts where the one before stopped
    sign = torch.where((place % 2 == 0) & (place == lengths[mask] - 1), 0, sign)
    return torch.zeros(len(runs), dtype=torch.int64).index_add_(0, mask, sign * runs.ends.long())


def source_mask(runs: MaskRuns, mask: int) -> SourceMask | None:
    """One mask in the pixels of its picture, or None if nothing of it is set."""
    one = select(runs, [mask])
    height, width = one.sizes[0].tolist()
    box = _bounding_box(one.ends.long(), height)
    if box is None:
        return None
    shift = torch.tensor([[[1.0, 0.0, box.x0], [0.0, 1.0, box.y0]]])
    bits = rasterize(one, shift, (box.y1 - box.y0, box.x1 - box.x0))[0].bool()
    return SourceMask(bits, box, (height, width))


def _bounding_box(ends: Tensor, height: int) -> Box | None:
    pairs = ends[: len(ends) // 2 * 2].view(-1, 2)  # where set runs start and stop
    start, stop = pairs[pairs[:, 1] > pairs[:, 0]].unbind(1)
    if not len(start):
        return None
    first, last = start // height, (stop - 1) // height  # columns
    top, bottom = start % height, (stop - 1) % height
    crosses = last > first  # a run that goes on in the next column touches the bottom of one and the top of the other
    top = torch.where(crosses, 0, top)
    bottom = torch.where(crosses, height - 1, bottom)
    return Box(int(first.min()), int(top.min()), int(last.max()) + 1, int(bottom.max()) + 1)


class SourceView(NamedTuple):
    """How logits of one picture are seen at the picture's own size: ``rows @ logits @ columns.T``."""

    rows: Tensor  # float32 [height, h]
    columns: Tensor  # float32 [width, w]

    def box(self, logits: Tensor) -> Box | None:
        """Everything of [C, h, w] that can be positive at the source's size; None if nothing can."""
        positive = (logits > 0).any(0)  # [h, w]
        if not positive.any():
            return None
        rows = (self.rows[:, positive.any(1)] > 0).any(1).nonzero()[:, 0]
        columns = (self.columns[:, positive.any(0)] > 0).any(1).nonzero()[:, 0]
        if not len(rows) or not len(columns):  # positive in the padding only
            return None
        return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)

    def cut(self, logits: Tensor, box: Box) -> Tensor:
        """bool [C, height, width] of the box, from logits float32 [C, h, w]."""
        return self.rows[box.y0 : box.y1] @ logits @ self.columns[box.x0 : box.x1].T > 0


def source_view(grid: tuple[int, int], side: int, valid: tuple[int, int], size: tuple[int, int]) -> SourceView:
    """The view of a picture that was resized to ``valid`` and padded to ``side`` x ``side`` input pixels.

    Args:
        grid: height and width of the logits.
        valid, size: height and width of the picture, in the input and in the source.
    """
    rows, columns = (_resize_matrix(grid[axis], side, valid[axis], size[axis]) for axis in (0, 1))
    return SourceView(rows, columns)


def _resize_matrix(cells: int, side: int, valid: int, size: int) -> Tensor:
    """float32 [size, cells]: two bilinear resizes with a cut between them, of one axis."""
    line = torch.eye(cells)[None]  # [1, cells, cells]: one channel a cell
    line = F.interpolate(line, side, mode="linear", align_corners=False)[..., :valid]
    return F.interpolate(line, size, mode="linear", align_corners=False)[0].T.contiguous()


def input_point(batch: SegmentBatch, mask: int, box: Box) -> tuple[int, int]:
    """The input pixel (x, y) nearest to the middle of a source box: where a mask too small for the input lies."""
    picture = int(batch.picture[mask])
    matrix = batch.to_source[picture].double()
    middle = torch.tensor([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2], dtype=torch.float64)
    x, y = torch.linalg.solve(matrix[:, :2], middle - matrix[:, 2]).floor().long().tolist()
    height, width = batch.valid_sizes[picture].tolist()
    return min(max(x, 0), width - 1), min(max(y, 0), height - 1)
