"""The compiled form of ``distance_transform``: linear in the number of pixels, for host memory."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"
from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def fill(masks, border, out):
    """masks: bool [O, H, W]; out: int32 [O, H, W] takes the squared distances."""
    count, height, width = masks.shape
    g, winners, starts = np.zeros((3, width + 2), np.int64)
    for o in range(count):
        _columns(masks[o], border, out[o])
        for y in range(height):
            x = 0
            while x < width:
                end = x
                while end < width and out[o, y, end] > 0:
                    end += 1
                if end > x:
                    _stretch(out[o, y], x, end, border, g, winners, starts)
                x = end + 1


@numba.njit(cache=True, nogil=True)
def _columns(mask, border, d):
    """d [H, W] takes the distance to the nearest unset pixel of the column, at most H + W."""
    height, width = mask.shape
    far = height + width
    outside = 0 if border else far
    for y in range(height):
        for x in range(width):
            above = d[y - 1, x] if y > 0 else outside
            d[y, x] = min(above + 1, far) if mask[y, x] else 0
    for y in range(height - 1, -1, -1):
        for x in range(width):
            below = d[y + 1, x] if y + 1 < height else outside
            d[y, x] = min(d[y, x], below + 1)


@numba.njit(cache=True, nogil=True)
def _stretch(row, begin, end, border, g, winners, starts):
    """Turn row[begin:end], all set and unset at both ends, from column distances into squared distances.

    Nothing beyond the unset pixels at the ends can be nearer than they are, so they and the stretch are all there is.
    winners[k] is the column whose parabola is the lowest from starts[k] on.
    """
    first = begin - 1 if begin > 0 or border else begin
    last = end if end < row.size or border else end - 1
    size = last - first + 1
    for i in range(size):
        at = first + i
        g[i] = np.int64(row[at]) ** 2 if begin <= at < end else 0
    top = 0
    winners[0] = starts[0] = 0
    for u in range(1, size):
        while top >= 0 and _parabola(starts[top], winners[top], g) > _parabola(starts[top], u, g):
            top -= 1
        if top < 0:
            top = 0
            winners[0], starts[0] = u, 0
            continue
        w = winners[top]
        start = 1 + (u * u - w * w + g[u] - g[w]) // (2 * (u - w))
        if start < size:
            top += 1
            winners[top], starts[top] = u, start
    for u in range(size - 1, -1, -1):
        if begin <= first + u < end:
            row[first + u] = _parabola(u, winners[top], g)
        if u == starts[top]:
            top -= 1


@numba.njit(cache=True, nogil=True, inline="always")
def _parabola(x, column, g):
    return (x - column) ** 2 + g[column]
