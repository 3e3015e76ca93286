"""The kernels of ``mask_loss``, whose docstring has the maths.

A program walks down ROWS rows of the cells of one mask, a lane a column. Three rows of cells are at hand, ``above``,
``here`` and ``below``, each a tuple of what a lane sees of it: its left neighbour, its own cell, its right neighbour.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _cells(X, row, column, HEIGHT, WIDTH: tl.constexpr):
    """A row of cells, clamped to the grid."""
    X += tl.minimum(tl.maximum(row, 0), HEIGHT - 1) * WIDTH
    left = tl.load(X + tl.minimum(tl.maximum(column - 1, 0), WIDTH - 1)).to(tl.float32)
    own = tl.load(X + tl.minimum(column, WIDTH - 1)).to(tl.float32)
    right = tl.load(X + tl.minimum(column + 1, WIDTH - 1)).to(tl.float32)
    return left, own, right


@triton.jit
def _mix(before, own, after, offset: tl.constexpr):
    if offset < 0:
        return own + (before - own) * -offset
    elif offset > 0:
        return own + (after - own) * offset
    else:
        return own


@triton.jit
def _mix_rows(above, here, below, offset: tl.constexpr):
    return (
        _mix(above[0], here[0], below[0], offset),
        _mix(above[1], here[1], below[1], offset),
        _mix(above[2], here[2], below[2], offset),
    )


@triton.jit
def _plus(a, b, factor):
    """a + factor * b of tuples of three."""
    return a[0] + b[0] * factor, a[1] + b[1] * factor, a[2] + b[2] * factor


@triton.jit
def _share_columns(g, owed, offset: tl.constexpr):
    """The mix of columns turned around: what a pixel's gradient g adds to the cells to the left, here, to the right."""
    if offset < 0:
        return owed[0] + g * -offset, owed[1] + g * (1 + offset), owed[2]
    elif offset > 0:
        return owed[0], owed[1] + g * (1 - offset), owed[2] + g * offset
    else:
        return owed[0], owed[1] + g, owed[2]


@triton.jit
def _share_rows(owed, up, mid, down, offset: tl.constexpr):
    """The mix of rows turned around: what a row of pixels owes the rows of cells above, here and below."""
    if offset < 0:
        return _plus(up, owed, -offset), _plus(mid, owed, 1 + offset), down
    elif offset > 0:
        return up, _plus(mid, owed, 1 - offset), _plus(down, owed, offset)
    else:
        return up, _plus(mid, owed, 1.0), down


@triton.jit
def _truth(TRUTH, row, column, k: tl.constexpr, packed, ok, WIDTH: tl.constexpr, F: tl.constexpr):
    """Of the k-th pixel of each cell in a fine row: whether the truth has it."""
    if F == 4:
        return ((packed >> (8 * k)) & 255) != 0
    return tl.load(TRUTH + row * (F * WIDTH) + F * column + k, mask=ok, other=0) != 0


@triton.jit
def _packed(TRUTH, row, column, ok, WIDTH: tl.constexpr, F: tl.constexpr):
    """The four pixels of each cell in a fine row, in the bytes of one int32."""
    if F == 4:
        return tl.load(TRUTH + row * WIDTH + column, mask=ok, other=0)
    return tl.zeros_like(column)


@triton.jit
def _missing(x, t, FAST: tl.constexpr):
    """m and softplus(y)."""
    y = tl.where(t, -x, x)
    e = tl.exp2(-tl.abs(x) * LOG2E)
    large = 1.0 / (1.0 + e)
    miss = tl.where(y >= 0, large, e * large)
    if FAST:  # one instruction of the special function unit; tl.log is a polynomial of sixty
        log = libdevice.fast_logf(1.0 + e)
    else:
        log = tl.log(1.0 + e)
    return miss, tl.maximum(y, 0.0) + log


@triton.jit
def _power(miss, GAMMA: tl.constexpr):
    if GAMMA == 2:
        return miss * miss
    if GAMMA == 0:
        return tl.full(miss.shape, 1.0, tl.float32)
    return tl.exp2(GAMMA * tl.log2(tl.maximum(miss, 1e-30)))


@triton.jit
def _move_beside(owed, column, WIDTH: tl.constexpr, LANES: tl.constexpr):
    """A complete row: what cells are owed by their neighbours' pixels moves to them; at the edges it stays."""
    own = owed[1] + tl.where(column == 0, owed[0], 0.0) + tl.where(column == WIDTH - 1, owed[2], 0.0)
    from_right = tl.gather(owed[0], tl.minimum(column + 1, LANES - 1), 0)
    from_left = tl.gather(owed[2], tl.maximum(column - 1, 0), 0)
    return own + tl.where(column < WIDTH - 1, from_right, 0.0) + tl.where(column > 0, from_left, 0.0)


@triton.jit
def _place(masks, HEIGHT, ROWS: tl.constexpr):
    """Of the launch's one axis, which has room for any number of objects: strip, object, mask of all, strips of one.

    The masks of an object run side by side, so that the truth they share is still in the cache.
    """
    program, strips = tl.program_id(0), (HEIGHT + ROWS - 1) // ROWS
    item = (program // masks // strips).to(tl.int64)
    return program // masks % strips, item, item * masks + program % masks, strips


@triton.jit
def forward(
    X,  # [O, C, HEIGHT, WIDTH]
    TRUTH,  # uint8 [O, F * HEIGHT, F * WIDTH]; with F = 4 as int32, four pixels each
    VALID,  # int32 [O, 2]  rows and columns of the fine grid that count
    SUMS,  # float32 [O, C, strips, 6]
    masks, HEIGHT, W_FOREGROUND, W_BACKGROUND,
    WIDTH: tl.constexpr, LANES: tl.constexpr, F: tl.constexpr, ROWS: tl.constexpr,
    GAMMA: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    strip, item, mask, strips = _place(masks, HEIGHT, ROWS)
    X += mask * HEIGHT * WIDTH
    TRUTH += item * HEIGHT * WIDTH * (F if F == 4 else F * F)
    rows_valid, columns_valid = tl.load(VALID + 2 * item), tl.load(VALID + 2 * item + 1)
    column, zero, first = tl.arange(0, LANES), tl.zeros((LANES,), tl.float32), strip * ROWS
    focal, sum_p, sum_pt, sum_t, positive, shared = zero, zero, zero, zero, zero, zero
    above, here = _cells(X, first - 1, column, HEIGHT, WIDTH), _cells(X, first, column, HEIGHT, WIDTH)
    for row in range(first, tl.minimum(first + ROWS, HEIGHT)):
        below = _cells(X, row + 1, column, HEIGHT, WIDTH)
        for ky in tl.static_range(F):
            fine = F * row + ky
            line = _mix_rows(above, here, below, (ky + 0.5) / F - 0.5)
            # No "&" of a scalar and a row: the interpreter of Triton 3.9 makes numbers of it.
            row_ok = column < tl.where(fine < rows_valid, WIDTH, 0)
            packed = _packed(TRUTH, fine, column, row_ok, WIDTH, F)
            for kx in tl.static_range(F):
                x = _mix(line[0], line[1], line[2], (kx + 0.5) / F - 0.5)
                ok = row_ok & (F * column + kx < columns_valid)
                t = _truth(TRUTH, fine, column, kx, packed, ok, WIDTH, F) & ok
                miss, softplus = _missing(x, t, FAST)
                loss = _power(miss, GAMMA) * softplus * tl.where(t, W_FOREGROUND, W_BACKGROUND)
                focal += tl.where(ok, loss, 0.0)
                sum_p += tl.where(ok, tl.where(t, 1.0 - miss, miss), 0.0)
                sum_pt += tl.where(t, 1.0 - miss, 0.0)
                sum_t += tl.where(t, 1.0, 0.0)
                positive += tl.where(ok & (x > 0), 1.0, 0.0)
                shared += tl.where(t & (x > 0), 1.0, 0.0)
        above, here = here, below
    SUMS += (mask * strips + strip) * 6
    tl.store(SUMS, tl.sum(focal))
    tl.store(SUMS + 1, tl.sum(sum_p))
    tl.store(SUMS + 2, tl.sum(sum_pt))
    tl.store(SUMS + 3, tl.sum(sum_t))
    tl.store(SUMS + 4, tl.sum(positive))
    tl.store(SUMS + 5, tl.sum(shared))


@triton.jit
def backward(
    X,  # [O, C, HEIGHT, WIDTH]
    TRUTH,  # as forward
    VALID,  # int32 [O, 2]
    COEFFICIENTS,  # float32 [O, C, 3]  c_f, c_0, c_1
    D_X,  # [O, C, HEIGHT, WIDTH]
    masks, HEIGHT, W_FOREGROUND, W_BACKGROUND,
    WIDTH: tl.constexpr, LANES: tl.constexpr, F: tl.constexpr, ROWS: tl.constexpr,
    GAMMA: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    strip, item, mask, _ = _place(masks, HEIGHT, ROWS)
    X, D_X = X + mask * HEIGHT * WIDTH, D_X + mask * HEIGHT * WIDTH
    TRUTH += item * HEIGHT * WIDTH * (F if F == 4 else F * F)
    rows_valid, columns_valid = tl.load(VALID + 2 * item), tl.load(VALID + 2 * item + 1)
    c_f, c_0 = tl.load(COEFFICIENTS + 3 * mask), tl.load(COEFFICIENTS + 3 * mask + 1)
    c_1 = tl.load(COEFFICIENTS + 3 * mask + 2)
    column, zero, first = tl.arange(0, LANES), tl.zeros((LANES,), tl.float32), strip * ROWS
    above, here = _cells(X, first - 2, column, HEIGHT, WIDTH), _cells(X, first - 1, column, HEIGHT, WIDTH)
    last, this = (zero, zero, zero), (zero, zero, zero)  # what the row above and this one are owed by rows done so far
    for row in range(first - 1, tl.minimum(first + ROWS, HEIGHT) + 1):
        below = _cells(X, row + 1, column, HEIGHT, WIDTH)
        up, mid, down = (zero, zero, zero), (zero, zero, zero), (zero, zero, zero)
        for ky in tl.static_range(F):
            fine = F * row + ky
            line = _mix_rows(above, here, below, (ky + 0.5) / F - 0.5)
            row_ok = column < tl.where((fine >= 0) & (fine < rows_valid) & (row < HEIGHT), WIDTH, 0)
            packed = _packed(TRUTH, fine, column, row_ok, WIDTH, F)
            owed = (zero, zero, zero)
            for kx in tl.static_range(F):
                x = _mix(line[0], line[1], line[2], (kx + 0.5) / F - 0.5)
                ok = row_ok & (F * column + kx < columns_valid)
                t = _truth(TRUTH, fine, column, kx, packed, ok, WIDTH, F)
                miss, softplus = _missing(x, t, FAST)
                d_focal = c_f * _power(miss, GAMMA) * (GAMMA * (1.0 - miss) * softplus + miss)
                g = tl.where(t, -W_FOREGROUND, W_BACKGROUND) * d_focal
                g += tl.where(t, c_0 + c_1, c_0) * (miss * (1.0 - miss))
                owed = _share_columns(tl.where(ok, g, 0.0), owed, (kx + 0.5) / F - 0.5)
            up, mid, down = _share_rows(owed, up, mid, down, (ky + 0.5) / F - 0.5)
        # At the edges the row stands in for its missing neighbour.
        mid = _plus(mid, up, tl.where(row == 0, 1.0, 0.0))
        mid = _plus(mid, down, tl.where(row == HEIGHT - 1, 1.0, 0.0))
        done = _move_beside(_plus(last, up, 1.0), column, WIDTH, LANES)
        ok = column < tl.where(row - 1 >= first, WIDTH, 0)
        tl.store(D_X + (row - 1) * WIDTH + column, done.to(D_X.dtype.element_ty), mask=ok)
        last, this = _plus(this, mid, 1.0), down
        above, here = here, below
