"""Attention in windows of a grid with SAM's decomposed relative positions, forward and backward.

The scores are those of ``rel_pos_attention_global``, within windows of S x S tokens. Windows at the bottom and the
right reach beyond the grid; what lies there is a pad token, which is attended like any other and whose q, k and v
are the same everywhere (SAM pads with zeros before the layer that makes them, so they are that layer's bias).

Nothing is cut up or put together: programs read q, k and v where the layer left them, in picture order, point every
pad token at the one row that all share, and write their answer in picture order. Partitioning, padding and undoing
both moves four times the bytes that attention itself does.

A row of a window is too short for a tile, so tiles of keys take them as they come and the position terms go through
the matrix unit. For a query, TERMS holds [h 0..S-1 | w 0..S-1 | lowest | 0 ...] / scale, and E, one row a key, has
ones at kh, at S + kw and, for keys beyond the window's last, at 2 S:

    s / scale = q k^T + TERMS E^T          dTERMS = dS E

TERMS itself is cut out of q T^T, the products with all rows of a table: column kh of row (qh, qw) is that of offset
qh - kh + S - 1. The same cut turned around, d(q T^T), is one product away from the gradients of q and of the tables.

Gradients of tables and of the pad token are summed over programs by a reduction of its own: no atomics, and two runs
give the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_attention, check_contiguous, check_like
from .configs import config_for, float_precision, split_head_dim
from .launch import launch

LOG2E = tl.constexpr(1.4426950408889634)
LARGEST_WINDOW = 32


@triton.jit
def _places(tokens, window, HEIGHT, WIDTH, ACROSS, S: tl.constexpr):
    """Of a window's tokens: the row of the picture's matrix, and whether the picture has it."""
    y = window // ACROSS * S + tokens // S
    x = window % ACROSS * S + tokens % S
    return y * WIDTH + x, (tokens < S * S) & (y < HEIGHT) & (x < WIDTH)


@triton.jit
def _tokens(
    QKV, PAD, which: tl.constexpr, channels, rows, inside, token_ok,
    part: tl.constexpr, start: tl.constexpr, D: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """q, k or v (``which`` 0 to 2) of tokens, [tokens, part] from column ``start`` on.

    PAD's where the picture has none, 0 where there is no token; ALL: there is one everywhere.
    """
    columns = which * channels + start + tl.arange(0, part)
    row = tl.where(inside, QKV + rows * (3 * channels), PAD)
    pointers = row[:, None] + columns[None, :]
    if start + part <= D:
        if ALL:
            return tl.load(pointers)
        return tl.load(pointers, mask=token_ok[:, None], other=0.0)
    column_ok = start + tl.arange(0, part) < D
    return tl.load(pointers, mask=token_ok[:, None] & column_ok[None, :], other=0.0)


@triton.jit
def _inside(PTR, rows, inside, stride, part: tl.constexpr, start: tl.constexpr, D: tl.constexpr):
    """The same with 0 where the picture has none."""
    columns = start + tl.arange(0, part)
    ok = inside[:, None] & (columns < D)[None, :]
    return tl.load(PTR + rows[:, None] * stride + columns[None, :], mask=ok, other=0.0)


@triton.jit
def _store_inside(PTR, x, rows, inside, stride, part: tl.constexpr, start: tl.constexpr, D: tl.constexpr):
    columns = start + tl.arange(0, part)
    ok = inside[:, None] & (columns < D)[None, :]
    tl.store(PTR + rows[:, None] * stride + columns[None, :], x.to(PTR.dtype.element_ty), mask=ok)


@triton.jit
def _table(PTR, rows: tl.constexpr, T: tl.constexpr, part: tl.constexpr, start: tl.constexpr, D: tl.constexpr):
    """[T, part] of a table with ``rows`` rows and D columns, 0 beyond."""
    row, column = tl.arange(0, T), start + tl.arange(0, part)
    ok = (row < rows)[:, None] & (column < D)[None, :]
    return tl.load(PTR + row[:, None] * D + column[None, :], mask=ok, other=0.0)


@triton.jit
def _cut(gh, gw, tokens, lowest, S: tl.constexpr, T: tl.constexpr, R: tl.constexpr):
    """Products with the tables' rows [tokens, T] to the terms [tokens, R]."""
    term = tl.arange(0, R)[None, :]
    at_h = tl.minimum(tl.maximum((tokens // S)[:, None] - term + (S - 1), 0), T - 1)
    at_w = tl.minimum(tl.maximum((tokens % S)[:, None] - term + (2 * S - 1), 0), T - 1)
    terms = tl.where(term < S, tl.gather(gh, at_h, 1), tl.gather(gw, at_w, 1))
    return tl.where(term < 2 * S, terms, tl.where(term == 2 * S, lowest, 0.0))


@triton.jit
def _uncut(d_terms, place, first: tl.constexpr, S: tl.constexpr, T: tl.constexpr, R: tl.constexpr):
    """The gradient of the terms [tokens, R] to that of the products with one table's rows, [tokens, T]."""
    key = place[:, None] + (S - 1) - tl.arange(0, T)[None, :]
    found = tl.gather(d_terms, tl.minimum(tl.maximum(key, 0), S - 1) + first, 1)
    return tl.where((key >= 0) & (key < S), found, 0.0)


@triton.jit
def _one_hot(keys, S: tl.constexpr, R: tl.constexpr, DTYPE: tl.constexpr):
    """E, [keys, R]."""
    term = tl.arange(0, R)[None, :]
    key = keys[:, None]
    hit = (term == key // S) | (term == S + key % S)
    return tl.where(key < S * S, hit, term == 2 * S).to(DTYPE)


@triton.jit
def _terms(
    q0, q1, REL_H, REL_W, tokens, lowest, scale,
    S: tl.constexpr, T: tl.constexpr, R: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """TERMS of queries [tokens, D0 + D1], float32."""
    gh = tl.dot(q0, tl.trans(_table(REL_H, 2 * S - 1, T, D0, 0, D)), input_precision=PRECISION)
    gw = tl.dot(q0, tl.trans(_table(REL_W, 2 * S - 1, T, D0, 0, D)), input_precision=PRECISION)
    if D1 > 0:
        gh = tl.dot(q1, tl.trans(_table(REL_H, 2 * S - 1, T, D1, D0, D)), gh, input_precision=PRECISION)
        gw = tl.dot(q1, tl.trans(_table(REL_W, 2 * S - 1, T, D1, D0, D)), gw, input_precision=PRECISION)
    return _cut(gh / scale, gw / scale, tokens, lowest, S, T, R)


@triton.jit
def _forward_kernel(
    QKV,  # [B, H, W, 3, heads, D]
    PAD,  # [3, heads, D]
    REL_H,  # [2 S - 1, D]
    REL_W,  # [2 S - 1, D]
    OUT,  # [B, H, W, heads, D]
    LSE,  # float32 [B, windows, heads, S * S]  log2 of the softmax's denominator
    scale,
    lowest,
    heads,
    height,
    width,
    across,
    windows,
    S: tl.constexpr,
    T: tl.constexpr,  # power of two, at least 2 S - 1
    R: tl.constexpr,  # power of two, at least 2 S + 1
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASK: tl.constexpr,  # mask by comparison too: ``lowest`` is not low enough in float16
    PRECISION: tl.constexpr,
):
    N: tl.constexpr = S * S
    ALL: tl.constexpr = N % BLOCK_N == 0
    DTYPE: tl.constexpr = QKV.dtype.element_ty
    head, window = tl.program_id(1) % heads, tl.program_id(1) // heads % windows
    batch = (tl.program_id(1) // heads // windows).to(tl.int64)
    channels = heads * D
    QKV += batch * height * width * 3 * channels + head * D
    OUT += batch * height * width * channels + head * D
    LSE += ((batch * windows + window) * heads + head) * N
    PAD += head * D
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows, inside = _places(queries, window, height, width, across, S)

    q0 = _inside(QKV, rows, inside, 3 * channels, D0, 0, D)
    q1 = q0
    acc0 = tl.zeros((BLOCK_M, D0), tl.float32)
    if D1 > 0:
        q1 = _inside(QKV, rows, inside, 3 * channels, D1, D0, D)
        acc1 = tl.zeros((BLOCK_M, D1), tl.float32)
    terms = _terms(q0, q1, REL_H, REL_W, queries, lowest, scale, S, T, R, D, D0, D1, PRECISION).to(DTYPE)
    highest = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    to_log2 = scale * LOG2E
    for first in range(0, N, BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        key_ok = keys < N
        key_rows, key_inside = _places(keys, window, height, width, across, S)
        s = tl.dot(terms, tl.trans(_one_hot(keys, S, R, DTYPE)), input_precision=PRECISION)
        k0 = _tokens(QKV, PAD, 1, channels, key_rows, key_inside, key_ok, D0, 0, D, ALL)
        s = tl.dot(q0, tl.trans(k0), s, input_precision=PRECISION)
        if D1 > 0:
            k1 = _tokens(QKV, PAD, 1, channels, key_rows, key_inside, key_ok, D1, D0, D, ALL)
            s = tl.dot(q1, tl.trans(k1), s, input_precision=PRECISION)
        if MASK:
            s = tl.where(key_ok[None, :], s, -float("inf"))
        new = tl.maximum(highest, tl.max(s, 1) * to_log2)
        p = tl.exp2(s * to_log2 - new[:, None])
        shrink = tl.exp2(highest - new)
        total = total * shrink + tl.sum(p, 1)
        highest = new
        p = p.to(DTYPE)
        v0 = _tokens(QKV, PAD, 2, channels, key_rows, key_inside, key_ok, D0, 0, D, ALL)
        acc0 = tl.dot(p, v0, acc0 * shrink[:, None], input_precision=PRECISION)
        if D1 > 0:
            v1 = _tokens(QKV, PAD, 2, channels, key_rows, key_inside, key_ok, D1, D0, D, ALL)
            acc1 = tl.dot(p, v1, acc1 * shrink[:, None], input_precision=PRECISION)
    share = (1.0 / total)[:, None]
    _store_inside(OUT, acc0 * share, rows, inside, channels, D0, 0, D)
    if D1 > 0:
        _store_inside(OUT, acc1 * share, rows, inside, channels, D1, D0, D)
    tl.store(LSE + queries, highest + tl.log2(total), mask=queries < N)


@triton.jit
def _backward_queries_kernel(
    QKV,  # [B, H, W, 3, heads, D]
    PAD,  # [3, heads, D]
    REL_H,  # [2 S - 1, D]
    REL_W,  # [2 S - 1, D]
    OUT,  # [B, H, W, heads, D]
    D_OUT,  # [B, H, W, heads, D]
    LSE,  # float32 [B, windows, heads, S * S]
    D_QKV,  # [B, H, W, 3, heads, D]  its q is written here
    DELTA,  # float32 [B, windows, heads, S * S]  sum(do * o), written here for the other kernel
    TERMS,  # [B, windows, heads, S * S, R]  written here for the other kernel
    D_TABLES,  # float32 [2, B, windows, heads, tiles, T, D]  this program's share of the tables' gradients
    scale,
    lowest,
    heads,
    height,
    width,
    across,
    windows,
    S: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    N: tl.constexpr = S * S
    ALL: tl.constexpr = N % BLOCK_N == 0
    DTYPE: tl.constexpr = QKV.dtype.element_ty
    head, window = tl.program_id(1) % heads, tl.program_id(1) // heads % windows
    batch = (tl.program_id(1) // heads // windows).to(tl.int64)
    channels = heads * D
    QKV += batch * height * width * 3 * channels + head * D
    D_QKV += batch * height * width * 3 * channels + head * D
    OUT += batch * height * width * channels + head * D
    D_OUT += batch * height * width * channels + head * D
    LSE += ((batch * windows + window) * heads + head) * N
    DELTA += ((batch * windows + window) * heads + head) * N
    TERMS += ((batch * windows + window) * heads + head) * N * R
    PAD += head * D
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    query_ok = queries < N
    rows, inside = _places(queries, window, height, width, across, S)

    q0 = _inside(QKV, rows, inside, 3 * channels, D0, 0, D)
    do0 = _inside(D_OUT, rows, inside, channels, D0, 0, D)
    o0 = _inside(OUT, rows, inside, channels, D0, 0, D)
    delta = tl.sum(do0.to(tl.float32) * o0.to(tl.float32), 1)
    dq0 = tl.zeros((BLOCK_M, D0), tl.float32)
    q1 = q0
    if D1 > 0:
        q1 = _inside(QKV, rows, inside, 3 * channels, D1, D0, D)
        do1 = _inside(D_OUT, rows, inside, channels, D1, D0, D)
        o1 = _inside(OUT, rows, inside, channels, D1, D0, D)
        delta += tl.sum(do1.to(tl.float32) * o1.to(tl.float32), 1)
        dq1 = tl.zeros((BLOCK_M, D1), tl.float32)
    tl.store(DELTA + queries, delta, mask=query_ok)
    terms = _terms(q0, q1, REL_H, REL_W, queries, lowest, scale, S, T, R, D, D0, D1, PRECISION).to(DTYPE)
    term = tl.arange(0, R)
    tl.store(TERMS + queries[:, None] * R + term[None, :], terms, mask=query_ok[:, None])
    lse = tl.load(LSE + queries, mask=query_ok, other=float("inf"))
    d_terms = tl.zeros((BLOCK_M, R), tl.float32)
    to_log2 = scale * LOG2E
    for first in range(0, N, BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        key_ok = keys < N
        key_rows, key_inside = _places(keys, window, height, width, across, S)
        one_hot = _one_hot(keys, S, R, DTYPE)
        k0 = _tokens(QKV, PAD, 1, channels, key_rows, key_inside, key_ok, D0, 0, D, ALL)
        v0 = _tokens(QKV, PAD, 2, channels, key_rows, key_inside, key_ok, D0, 0, D, ALL)
        s = tl.dot(terms, tl.trans(one_hot), input_precision=PRECISION)
        s = tl.dot(q0, tl.trans(k0), s, input_precision=PRECISION)
        dp = tl.dot(do0, tl.trans(v0), input_precision=PRECISION)
        if D1 > 0:
            k1 = _tokens(QKV, PAD, 1, channels, key_rows, key_inside, key_ok, D1, D0, D, ALL)
            v1 = _tokens(QKV, PAD, 2, channels, key_rows, key_inside, key_ok, D1, D0, D, ALL)
            s = tl.dot(q1, tl.trans(k1), s, input_precision=PRECISION)
            dp = tl.dot(do1, tl.trans(v1), dp, input_precision=PRECISION)
        p = tl.exp2(s * to_log2 - lse[:, None])
        if MASK:
            p = tl.where(key_ok[None, :], p, 0.0)
        ds = (p * (dp - delta[:, None])).to(DTYPE)
        d_terms = tl.dot(ds, one_hot, d_terms, input_precision=PRECISION)
        dq0 = tl.dot(ds, k0, dq0, input_precision=PRECISION)
        if D1 > 0:
            dq1 = tl.dot(ds, k1, dq1, input_precision=PRECISION)

    dgh = _uncut(d_terms, queries // S, 0, S, T, R).to(DTYPE)
    dgw = _uncut(d_terms, queries % S, S, S, T, R).to(DTYPE)
    D_TABLES += (((batch * windows + window) * heads + head) * tl.num_programs(0) + tl.program_id(0)) * T * D
    other = tl.num_programs(1).to(tl.int64) * tl.num_programs(0) * T * D  # from one table's part to the other's
    table_row, all_rows = tl.arange(0, T), tl.arange(0, T) < T
    dq0 = dq0 * scale
    dq0 = tl.dot(dgh, _table(REL_H, 2 * S - 1, T, D0, 0, D), dq0, input_precision=PRECISION)
    dq0 = tl.dot(dgw, _table(REL_W, 2 * S - 1, T, D0, 0, D), dq0, input_precision=PRECISION)
    _store_inside(D_QKV, dq0, rows, inside, 3 * channels, D0, 0, D)
    dt = tl.dot(tl.trans(dgh), q0, input_precision=PRECISION)
    _store_inside(D_TABLES, dt, table_row, all_rows, D, D0, 0, D)
    dt = tl.dot(tl.trans(dgw), q0, input_precision=PRECISION)
    _store_inside(D_TABLES + other, dt, table_row, all_rows, D, D0, 0, D)
    if D1 > 0:
        dq1 = dq1 * scale
        dq1 = tl.dot(dgh, _table(REL_H, 2 * S - 1, T, D1, D0, D), dq1, input_precision=PRECISION)
        dq1 = tl.dot(dgw, _table(REL_W, 2 * S - 1, T, D1, D0, D), dq1, input_precision=PRECISION)
        _store_inside(D_QKV, dq1, rows, inside, 3 * channels, D1, D0, D)
        dt = tl.dot(tl.trans(dgh), q1, input_precision=PRECISION)
        _store_inside(D_TABLES, dt, table_row, all_rows, D, D1, D0, D)
        dt = tl.dot(tl.trans(dgw), q1, input_precision=PRECISION)
        _store_inside(D_TABLES + other, dt, table_row, all_rows, D, D1, D0, D)


@triton.jit
def _backward_keys_kernel(
    QKV,  # [B, H, W, 3, heads, D]
    PAD,  # [3, heads, D]
    D_OUT,  # [B, H, W, heads, D]
    LSE,  # float32 [B, windows, heads, S * S]
    DELTA,  # float32 [B, windows, heads, S * S]
    TERMS,  # [B, windows, heads, S * S, R]
    D_QKV,  # [B, H, W, 3, heads, D]  its k and v are written here
    D_PAD,  # float32 [B, windows, tiles, 2, heads, D]  this program's share of the pad token's k and v gradients
    scale,
    lowest,
    heads,
    height,
    width,
    across,
    windows,
    S: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    N: tl.constexpr = S * S
    DTYPE: tl.constexpr = QKV.dtype.element_ty
    head, window = tl.program_id(1) % heads, tl.program_id(1) // heads % windows
    batch = (tl.program_id(1) // heads // windows).to(tl.int64)
    channels = heads * D
    QKV += batch * height * width * 3 * channels + head * D
    D_QKV += batch * height * width * 3 * channels + head * D
    D_OUT += batch * height * width * channels + head * D
    LSE += ((batch * windows + window) * heads + head) * N
    DELTA += ((batch * windows + window) * heads + head) * N
    TERMS += ((batch * windows + window) * heads + head) * N * R
    D_PAD += ((batch * windows + window) * tl.num_programs(0) + tl.program_id(0)) * 2 * channels + head * D
    PAD += head * D
    keys = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    key_ok = keys < N
    rows, inside = _places(keys, window, height, width, across, S)
    one_hot = _one_hot(keys, S, R, DTYPE)
    term = tl.arange(0, R)

    k0 = _tokens(QKV, PAD, 1, channels, rows, inside, key_ok, D0, 0, D, False)
    v0 = _tokens(QKV, PAD, 2, channels, rows, inside, key_ok, D0, 0, D, False)
    dk0 = tl.zeros((BLOCK_N, D0), tl.float32)
    dv0 = tl.zeros((BLOCK_N, D0), tl.float32)
    if D1 > 0:
        k1 = _tokens(QKV, PAD, 1, channels, rows, inside, key_ok, D1, D0, D, False)
        v1 = _tokens(QKV, PAD, 2, channels, rows, inside, key_ok, D1, D0, D, False)
        dk1 = tl.zeros((BLOCK_N, D1), tl.float32)
        dv1 = tl.zeros((BLOCK_N, D1), tl.float32)
    to_log2 = scale * LOG2E
    for first in range(0, N, BLOCK_M):
        queries = first + tl.arange(0, BLOCK_M)
        query_ok = queries < N
        query_rows, query_inside = _places(queries, window, height, width, across, S)
        # A query that the picture does not have got no answer: its do and delta are 0, and so is all it adds here.
        q0 = _inside(QKV, query_rows, query_inside, 3 * channels, D0, 0, D)
        do0 = _inside(D_OUT, query_rows, query_inside, channels, D0, 0, D)
        terms = tl.load(TERMS + queries[:, None] * R + term[None, :], mask=query_ok[:, None], other=0.0)
        s = tl.dot(one_hot, tl.trans(terms), input_precision=PRECISION)  # [BLOCK_N, BLOCK_M]
        s = tl.dot(k0, tl.trans(q0), s, input_precision=PRECISION)
        dp = tl.dot(v0, tl.trans(do0), input_precision=PRECISION)
        if D1 > 0:
            q1 = _inside(QKV, query_rows, query_inside, 3 * channels, D1, D0, D)
            do1 = _inside(D_OUT, query_rows, query_inside, channels, D1, D0, D)
            s = tl.dot(k1, tl.trans(q1), s, input_precision=PRECISION)
            dp = tl.dot(v1, tl.trans(do1), dp, input_precision=PRECISION)
        lse = tl.load(LSE + queries, mask=query_ok, other=float("inf"))
        delta = tl.load(DELTA + queries, mask=query_ok, other=0.0)
        p = tl.exp2(s * to_log2 - lse[None, :])
        ds = (p * (dp - delta[None, :])).to(DTYPE)
        p = p.to(DTYPE)
        dv0 = tl.dot(p, do0, dv0, input_precision=PRECISION)
        dk0 = tl.dot(ds, q0, dk0, input_precision=PRECISION)
        if D1 > 0:
            dv1 = tl.dot(p, do1, dv1, input_precision=PRECISION)
            dk1 = tl.dot(ds, q1, dk1, input_precision=PRECISION)
    beyond = (key_ok & ~inside)[:, None]
    _store_gradient(D_QKV + channels, D_PAD, dk0 * scale, rows, inside, beyond, 3 * channels, D0, 0, D)
    _store_gradient(D_QKV + 2 * channels, D_PAD + channels, dv0, rows, inside, beyond, 3 * channels, D0, 0, D)
    if D1 > 0:
        _store_gradient(D_QKV + channels, D_PAD, dk1 * scale, rows, inside, beyond, 3 * channels, D1, D0, D)
        _store_gradient(D_QKV + 2 * channels, D_PAD + channels, dv1, rows, inside, beyond, 3 * channels, D1, D0, D)


@triton.jit
def _store_gradient(
    PTR, D_PAD, x, rows, inside, beyond, stride, part: tl.constexpr, start: tl.constexpr, D: tl.constexpr
):
    """The picture's rows of x where they belong, and the sum of the pad token's."""
    _store_inside(PTR, x, rows, inside, stride, part, start, D)
    columns = start + tl.arange(0, part)
    tl.store(D_PAD + columns, tl.sum(tl.where(beyond, x, 0.0), 0), mask=columns < D)


def _launch_arguments(qkv: Tensor, window: int, kernel: str) -> dict[str, object]:
    _, height, width, _, heads, head_dim = qkv.shape
    across = triton.cdiv(width, window)
    config = config_for(kernel, head_dim, qkv.device)
    first, second = split_head_dim(head_dim)
    return {
        "scale": head_dim**-0.5,
        # Times the one in E it stands for minus infinity, which times E's zeros would be NaN.
        "lowest": -6e4 if qkv.dtype == torch.float16 else -1e30,
        "heads": heads,
        "height": height,
        "width": width,
        "across": across,
        "windows": across * triton.cdiv(height, window),
        "S": window,
        "T": max(16, triton.next_power_of_2(2 * window - 1)),
        "R": max(16, triton.next_power_of_2(2 * window + 1)),
        "D": head_dim,
        "D0": first,
        "D1": second,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "MASK": qkv.dtype == torch.float16,
        "PRECISION": float_precision(qkv.dtype),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


def run_forward(qkv: Tensor, pad: Tensor, rel_h: Tensor, rel_w: Tensor, window: int) -> tuple[Tensor, Tensor]:
    arguments = _launch_arguments(qkv, window, "rel_pos_attention_window_forward")
    out, lse = _empty_answer(qkv, window)
    grid = (triton.cdiv(window**2, arguments["BLOCK_M"]), lse.numel() // window**2)
    launch(_forward_kernel, grid, qkv, pad, rel_h, rel_w, out, lse, **arguments)
    return out, lse


def _empty_answer(qkv: Tensor, window: int) -> tuple[Tensor, Tensor]:
    batch, height, width, _, heads, head_dim = qkv.shape
    windows = -(-height // window) * -(-width // window)
    lse = qkv.new_empty(batch, windows, heads, window**2, dtype=torch.float32)
    return qkv.new_empty(batch, height, width, heads, head_dim), lse


_forward = torch.library.custom_op("sam_ds::rel_pos_attention_window", run_forward, mutates_args=())


@_forward.register_fake
def _(qkv: Tensor, pad: Tensor, rel_h: Tensor, rel_w: Tensor, window: int) -> tuple[Tensor, Tensor]:
    return _empty_answer(qkv, window)


def run_backward(
    d_out: Tensor, qkv: Tensor, pad: Tensor, rel_h: Tensor, rel_w: Tensor, out: Tensor, lse: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, windows, heads, num_tokens = lse.shape
    head_dim = qkv.shape[-1]
    d_qkv, delta = torch.empty_like(qkv), torch.empty_like(lse)

    arguments = _launch_arguments(qkv, window, "rel_pos_attention_window_backward_queries")
    tiles = triton.cdiv(num_tokens, arguments["BLOCK_M"])
    terms = qkv.new_empty(batch, windows, heads, num_tokens, arguments["R"])
    d_tables = lse.new_empty(2, batch * windows * heads * tiles, arguments["T"], head_dim)
    grid = (tiles, batch * windows * heads)
    launch(
        _backward_queries_kernel,
        grid,
        qkv,
        pad,
        rel_h,
        rel_w,
        out,
        d_out,
        lse,
        d_qkv,
        delta,
        terms,
        d_tables,
        **arguments,
    )
    arguments = _launch_arguments(qkv, window, "rel_pos_attention_window_backward_keys")
    tiles = triton.cdiv(num_tokens, arguments["BLOCK_N"])
    d_pad = lse.new_empty(batch * windows * tiles, 2, heads, head_dim)
    grid = (tiles, batch * windows * heads)
    launch(_backward_keys_kernel, grid, qkv, pad, d_out, lse, delta, terms, d_qkv, d_pad, **arguments)
    d_rel_h, d_rel_w = d_tables.sum(1)[:, : 2 * window - 1].to(qkv.dtype).unbind(0)
    d_pad = torch.nn.functional.pad(d_pad.sum(0), (0, 0, 0, 0, 1, 0)).to(qkv.dtype)  # a pad token asks nothing: no d_q
    return d_qkv, d_pad, d_rel_h.clone(), d_rel_w.clone()


_backward = torch.library.custom_op("sam_ds::rel_pos_attention_window_backward", run_backward, mutates_args=())


@_backward.register_fake
def _(
    d_out: Tensor, qkv: Tensor, pad: Tensor, rel_h: Tensor, rel_w: Tensor, out: Tensor, lse: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(qkv), torch.empty_like(pad), torch.empty_like(rel_h), torch.empty_like(rel_w)


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _autograd(ctx, d_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if d_out is None:
        return None, None, None, None, None
    return *_backward(d_out.contiguous(), *ctx.saved_tensors, ctx.window), None


_forward.register_autograd(_autograd, setup_context=_setup)


def rel_pos_attention_window(qkv: Tensor, pad: Tensor, rel_h: Tensor, rel_w: Tensor, window: int) -> Tensor:
    """Attend within windows, the first of which starts at the grid's first token.

    Args:
        qkv: [B, H, W, 3, heads, D], contiguous: the output of the layer that makes q, k and v. bfloat16, float16 or
            float32; D at most 256 and a multiple of 8.
        pad: [3, heads, D], contiguous: what that layer gives for a token beyond the grid, its bias. Its q is not used.
        rel_h, rel_w: [2 * window - 1, D], of qkv's type; row i is the offset i - (window - 1) from key to query.
        window: tokens along a window's side, at most 32.

    Returns:
        [B, H, W, heads, D].

    Raises:
        ValueError: a shape, type, device or layout that the kernels do not take; the message has the values.
    """
    if not 1 <= window <= LARGEST_WINDOW:
        raise ValueError(f"windows must have sides of 1 to {LARGEST_WINDOW} tokens, not {window}")
    check_attention(qkv, rel_h, rel_w, (window, window))
    check_like("pad", pad, qkv, tuple(qkv.shape[3:]))
    check_contiguous("pad", pad)
    return _forward(qkv, pad, rel_h.contiguous(), rel_w.contiguous(), window)[0]
