"""Tiles of rows with D channels, and products of them.

D is cut in two powers of two, 80 into 64 and 16, for padding it to 128 would cost 1.6 times the work. A tile is a tuple
of its one or two parts, so what is written about tiles is written once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .launch import INTERPRETED

_WIDEN = tl.constexpr(INTERPRETED)  # the interpreter multiplies the bits of bfloat16 as if they were integers


@triton.jit
def first_rows(QKV, OUT, row, head, channels, D: tl.constexpr):
    """Where the head's part of row ``row`` (int64: of all pictures) begins in a matrix like qkv and in one like out."""
    return QKV + row * 3 * channels + head * D, OUT + row * channels + head * D


@triton.jit
def dot(a, b, start, PRECISION: tl.constexpr):
    """start (None: 0) + a b, in float32."""
    if _WIDEN and a.dtype == tl.bfloat16:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), start, input_precision="ieee")
    else:
        return tl.dot(a, b, start, input_precision=PRECISION)


@triton.jit
def _part(rows, ok, START: tl.constexpr, PART: tl.constexpr, D: tl.constexpr, ALL: tl.constexpr):
    columns = START + tl.arange(0, PART)
    pointers = rows[:, None] + columns[None, :]
    if ALL and START + PART <= D:
        return tl.load(pointers)
    elif START + PART <= D:
        return tl.load(pointers, mask=ok[:, None], other=0.0)
    else:
        return tl.load(pointers, mask=ok[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def load(rows, ok, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ALL: tl.constexpr):
    """The tile whose rows start at the pointers ``rows``; 0 where not ``ok``. ALL: every row is."""
    if D1 > 0:
        return _part(rows, ok, 0, D0, D, ALL), _part(rows, ok, D0, D1, D, ALL)
    else:
        return (_part(rows, ok, 0, D0, D, ALL),)


@triton.jit
def _store_part(rows, ok, x, START: tl.constexpr, PART: tl.constexpr, D: tl.constexpr):
    columns = START + tl.arange(0, PART)
    value = x.to(rows.dtype.element_ty)
    tl.store(rows[:, None] + columns[None, :], value, mask=ok[:, None] & (columns < D)[None, :])


@triton.jit
def store(rows, ok, tile, factor, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """``factor`` (a number, or one a row as [rows, 1]) times the tile to where ``rows`` point."""
    _store_part(rows, ok, tile[0] * factor, 0, D0, D)
    if D1 > 0:
        _store_part(rows, ok, tile[1] * factor, D0, D1, D)


@triton.jit
def zeros(ROWS: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    if D1 > 0:
        return tl.zeros((ROWS, D0), tl.float32), tl.zeros((ROWS, D1), tl.float32)
    else:
        return (tl.zeros((ROWS, D0), tl.float32),)


@triton.jit
def scores(a, b, start, PRECISION: tl.constexpr):
    """start + a b^T, [rows of a, rows of b]."""
    s = dot(a[0], tl.trans(b[0]), start, PRECISION)
    if len(a) > 1:
        s = dot(a[1], tl.trans(b[1]), s, PRECISION)
    return s


@triton.jit
def add_product(total, p, b, PRECISION: tl.constexpr):
    """total + p b, a tile."""
    if len(b) > 1:
        return (
            dot(p, b[0], total[0], PRECISION),
            dot(p, b[1], total[1], PRECISION),
        )
    else:
        return (dot(p, b[0], total[0], PRECISION),)


@triton.jit
def times(tile, factor):
    if len(tile) > 1:
        return tile[0] * factor, tile[1] * factor
    else:
        return (tile[0] * factor,)


@triton.jit
def row_products(a, b):
    """sum over channels of a * b, float32 [rows]."""
    total = tl.sum(a[0].to(tl.float32) * b[0].to(tl.float32), 1)
    if len(a) > 1:
        total += tl.sum(a[1].to(tl.float32) * b[1].to(tl.float32), 1)
    return total


@triton.jit
def attend(s, v, shift, answer, highest, total, TO_LOG2, PRECISION: tl.constexpr):
    """One tile of keys more of a running softmax: the next answer (unnormalised), highest score and total.

    ``s`` times TO_LOG2 plus ``shift`` [rows] are the scores in units of log 2.
    """
    new = tl.maximum(highest, tl.max(s, 1) * TO_LOG2 + shift)
    p = tl.exp2(s * TO_LOG2 - (new - shift)[:, None])
    shrink = tl.exp2(highest - new)
    answer = add_product(times(answer, shrink[:, None]), p.to(v[0].dtype), v, PRECISION)
    return answer, new, total * shrink + tl.sum(p, 1)
