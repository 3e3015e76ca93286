"""Points and boxes of binary regions [O, H, W], for all objects at once and without a host sync.

They come out in pixels of the region's own grid; ``to_input`` takes them to the model's input.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw_pixel(region: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """A pixel of each region, uniformly.

    Args:
        region: bool [O, H, W].
        u: float32 [O] in [0, 1), what decides which pixel.

    Returns:
        points float32 [O, 2] as (x, y), and found bool [O]: False where a region is empty (the point is then (0, 0)).
    """
    in_row = region.sum(-1, dtype=torch.int32)  # [O, H]
    up_to_row = in_row.cumsum(-1, dtype=torch.int32)
    total = up_to_row[:, -1]
    # The k-th set pixel, in reading order: first its row, then its place in the row.
    k = torch.minimum((u.double() * total).to(torch.int32), total - 1)  # [O]
    y = (up_to_row <= k[:, None]).sum(-1).clamp(max=region.shape[1] - 1)  # [O]
    before = torch.gather(up_to_row - in_row, 1, y[:, None])  # [O, 1]
    row = torch.gather(region, 1, y[:, None, None].expand(-1, 1, region.shape[2]))[:, 0]  # [O, W]
    x = (row.cumsum(-1, dtype=torch.int32) <= k[:, None] - before).sum(-1).clamp(max=region.shape[2] - 1)
    found = total > 0
    return torch.stack([x, y], -1).float() * found[:, None], found


def tight_box(region: Tensor) -> Tensor:
    """float32 [O, 4], x0 y0 x1 y1 of the first and last set pixels; zeros for an empty region."""
    columns, rows = region.any(1), region.any(2)  # [O, W], [O, H]
    ends = [_first(columns), _first(rows), _last(columns), _last(rows)]
    return torch.stack(ends, -1).float() * rows.any(-1)[:, None]


def _first(line: Tensor) -> Tensor:
    return line.to(torch.uint8).argmax(-1)


def _last(line: Tensor) -> Tensor:
    return line.shape[-1] - 1 - line.flip(-1).to(torch.uint8).argmax(-1)


def to_input(coordinates: Tensor, stride: float) -> Tensor:
    """Pixel coordinates of a grid whose cells are ``stride`` input pixels wide, in input pixels."""
    return (coordinates + 0.5) * stride - 0.5
