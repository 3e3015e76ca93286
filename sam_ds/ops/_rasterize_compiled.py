"""The compiled form of ``rasterize``, for host memory.

Most transforms keep the axes (resize, crop, flip). Then a column of the output shows one column of the source, and
the mask's runs in it become stretches of rows: the work is that of the runs, not that of the pixels. Any other
matrix looks every pixel up among the runs of its source column.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"
from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def fill(ends, offsets, sizes, to_source, out):
    """Set the pixels of every mask.

    ends: int32 [R]; offsets: int64 [O+1]; sizes: int32 [O, 2]; to_source: float32 [O, 2, 3];
    out: uint8 [O, H, W], zero on entry.
    """
    rows = np.zeros(0, np.int32)
    for o in range(offsets.size - 1):
        height, width = np.int64(sizes[o, 0]), np.int64(sizes[o, 1])
        mask_ends = ends[offsets[o] : offsets[o + 1]]
        first = _first_ends(mask_ends, height, width)
        m = to_source[o]
        if m[0, 1] == 0 and m[1, 0] == 0 and m[1, 1] > 0:
            new_rows = o == 0 or height != sizes[o - 1, 0] or not np.array_equal(m[1], to_source[o - 1, 1])
            if new_rows or rows.size == 0:
                rows = _first_rows(m, height, out.shape[1])
            _fill_columns(mask_ends, first, rows, height, width, m, out[o])
        else:
            _fill_pixels(mask_ends, first, height, width, m, out[o])


@numba.njit(cache=True, nogil=True, inline="always")
def _source(m, axis, x, y):
    """The source coordinate as the reference rounds it: float32, product by product."""
    half = np.float32(0.5)
    along = m[axis, 0] * (np.float32(x) + half)
    across = m[axis, 1] * (np.float32(y) + half)
    return np.floor(np.float32(np.float32(along + across) + m[axis, 2]))


@numba.njit(cache=True, nogil=True)
def _first_ends(ends, height, width):
    """int32 [width + 1]: how many ends lie at or before the top of each source column."""
    first = np.empty(width + 1, np.int32)
    passed = 0
    for column in range(width + 1):
        top = column * height
        while passed < ends.size and ends[passed] <= top:
            passed += 1
        first[column] = passed
    return first


@numba.njit(cache=True, nogil=True)
def _first_rows(m, height, out_height):
    """int32 [height + 1]: the first row of the output that shows source row s or a later one."""
    rows = np.empty(height + 1, np.int32)
    y = 0
    for s in range(height + 1):
        while y < out_height and _source(m, 1, 0, y) < s:
            y += 1
        rows[s] = y
    return rows


@numba.njit(cache=True, nogil=True)
def _fill_columns(ends, first, rows, height, width, m, out):
    for x in range(out.shape[1]):
        column = _source(m, 0, x, 0)
        if column < 0 or column >= width:
            continue
        c = np.int64(column)
        top = c * height
        k = first[c]
        if k == first[c + 1] and k % 2 == 0:
            continue  # nothing of the mask in this column
        begin = 0
        while begin < height:
            end = min(ends[k] - top, height)
            if k % 2 == 1:
                for y in range(rows[begin], rows[end]):
                    out[y, x] = 1
            begin = end
            k += 1


@numba.njit(cache=True, nogil=True)
def _fill_pixels(ends, first, height, width, m, out):
    left, right = _columns_with_mask(first)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            column = _source(m, 0, x, y)
            if column < left or column >= right:
                continue
            row = _source(m, 1, x, y)
            if row < 0 or row >= height:
                continue
            c = np.int64(column)
            index = c * height + np.int64(row)
            k = first[c]
            while ends[k] <= index:
                k += 1
            out[y, x] = k % 2


@numba.njit(cache=True, nogil=True)
def _columns_with_mask(first):
    """The first source column that holds a part of the mask, and the one after the last."""
    width = first.size - 1
    left = 0
    while left < width and first[left] % 2 == 0 and first[left] == first[left + 1]:
        left += 1
    right = width
    while right > left and first[right - 1] % 2 == 0 and first[right - 1] == first[right]:
        right -= 1
    return left, right
