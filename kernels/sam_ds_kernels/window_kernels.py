"""The kernels of ``rel_pos_attention_window``, whose docstring has the maths.

A program of ``forward`` and ``backward_queries`` owns BLOCK_M queries of a window and head and walks over tiles of
BLOCK_N keys; one of ``backward_keys`` owns such a tile and walks over the queries. S is the window's side, D0 and D1
are the parts of D (``tiles``), T and R as in ``window_terms``. MASK: compare too, ``lowest`` is not low enough.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import window_terms
from .tiles import add_product, attend, dot, first_rows, load, row_products, scores, store, times, zeros

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _head(heads, windows):
    """Of the launch's second axis: head, window, picture (int64), and the place among all."""
    place = tl.program_id(1)
    return place % heads, place // heads % windows, (place // heads // windows).to(tl.int64), place.to(tl.int64)


@triton.jit
def _places(tokens, window, height, width, across, S: tl.constexpr):
    """Of a window's tokens: their row in the picture's matrix, and whether the picture has it."""
    y = window // across * S + tokens // S
    x = window % across * S + tokens % S
    return y * width + x, (tokens < S * S) & (y < height) & (x < width)


@triton.jit
def _rows(QKV, PAD, tokens, window, height, width, across, channels, S: tl.constexpr):
    """Where the q of a window's tokens begin, in the picture or in PAD: at multiples of 16 bytes, either way."""
    rows, inside = _places(tokens, window, height, width, across, S)
    return tl.multiple_of(tl.where(inside, QKV + rows * 3 * channels, PAD), 16)


@triton.jit
def forward(
    QKV,  # [B, H, W, 3, heads, D]
    PAD,  # [3, heads, D]
    REL_H,  # [2 S - 1, D]
    REL_W,  # [2 S - 1, D]
    OUT,  # [B, H, W, heads, D]
    LSE,  # float32 [B, windows, heads, S * S]  log2 of the softmax's denominator
    scale, lowest, heads, height, width, across, windows,
    S: tl.constexpr, T: tl.constexpr, R: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    N: tl.constexpr = S * S
    head, window, picture, place = _head(heads, windows)
    channels = heads * D
    QKV, OUT = first_rows(QKV, OUT, picture * height * width, head, channels, D)
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows, inside = _places(queries, window, height, width, across, S)
    q = load(QKV + rows * 3 * channels, inside, D, D0, D1, False)
    terms = window_terms.make(q, REL_H, REL_W, queries, lowest, scale, S, T, R, D, D0, D1, PRECISION)
    answer = zeros(BLOCK_M, D0, D1)
    highest = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for first in range(0, N, BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        at = _rows(QKV, PAD + head * D, keys, window, height, width, across, channels, S)
        one_hot = window_terms.one_hot(keys, S, R, terms.dtype)
        s = dot(terms, tl.trans(one_hot), None, PRECISION)
        k = load(at + channels, keys < N, D, D0, D1, N % BLOCK_N == 0)
        s = scores(q, k, s, PRECISION)
        if MASK:
            s = tl.where((keys < N)[None, :], s, -float("inf"))
        v = load(at + 2 * channels, keys < N, D, D0, D1, N % BLOCK_N == 0)
        answer, highest, total = attend(s, v, tl.zeros_like(total), answer, highest, total, scale * LOG2E, PRECISION)
    store(OUT + rows * channels, inside, answer, (1.0 / total)[:, None], D, D0, D1)
    tl.store(LSE + place * N + queries, highest + tl.log2(total), mask=queries < N)


@triton.jit
def backward_queries(
    QKV,  # [B, H, W, 3, heads, D]
    PAD,  # [3, heads, D]
    REL_H, REL_W,  # [2 S - 1, D] each
    OUT, D_OUT,  # [B, H, W, heads, D] each
    LSE,  # float32 [B, windows, heads, S * S]
    D_QKV,  # [B, H, W, 3, heads, D]  its q is written here
    DELTA,  # float32 [B, windows, heads, S * S]  sum(do * o), written here for the other kernel
    TERMS,  # [B, windows, heads, S * S, R]  written here for the other kernel
    D_TABLES,  # float32 [2, B, windows, heads, tiles, T, D]  this program's share of the tables' gradients
    scale, lowest, heads, height, width, across, windows,
    S: tl.constexpr, T: tl.constexpr, R: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    N: tl.constexpr = S * S
    head, window, picture, place = _head(heads, windows)
    channels = heads * D
    QKV, OUT = first_rows(QKV, OUT, picture * height * width, head, channels, D)
    D_QKV, D_OUT = first_rows(D_QKV, D_OUT, picture * height * width, head, channels, D)
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows, inside = _places(queries, window, height, width, across, S)
    q = load(QKV + rows * 3 * channels, inside, D, D0, D1, False)
    do = load(D_OUT + rows * channels, inside, D, D0, D1, False)
    delta = row_products(do, load(OUT + rows * channels, inside, D, D0, D1, False))
    tl.store(DELTA + place * N + queries, delta, mask=queries < N)
    terms = window_terms.make(q, REL_H, REL_W, queries, lowest, scale, S, T, R, D, D0, D1, PRECISION)
    at = (place * N + queries)[:, None] * R + tl.arange(0, R)[None, :]
    tl.store(TERMS + at, terms, mask=(queries < N)[:, None])
    lse = tl.load(LSE + place * N + queries, mask=queries < N, other=float("inf"))
    dq, d_terms = zeros(BLOCK_M, D0, D1), tl.zeros((BLOCK_M, R), tl.float32)
    for first in range(0, N, BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        key = _rows(QKV, PAD + head * D, keys, window, height, width, across, channels, S)
        one_hot = window_terms.one_hot(keys, S, R, terms.dtype)
        k = load(key + channels, keys < N, D, D0, D1, N % BLOCK_N == 0)
        v = load(key + 2 * channels, keys < N, D, D0, D1, N % BLOCK_N == 0)
        s = scores(q, k, dot(terms, tl.trans(one_hot), None, PRECISION), PRECISION) * (scale * LOG2E) - lse[:, None]
        p = tl.where((keys < N)[None, :], tl.exp2(s), 0.0) if MASK else tl.exp2(s)
        ds = (p * (scores(do, v, None, PRECISION) - delta[:, None])).to(terms.dtype)
        d_terms = dot(ds, one_hot, d_terms, PRECISION)
        dq = add_product(dq, ds, k, PRECISION)
    dh = window_terms.turn(d_terms, queries // S, 0, S, T).to(terms.dtype)
    dw = window_terms.turn(d_terms, queries % S, S, S, T).to(terms.dtype)
    dq = add_product(times(dq, scale), dh, window_terms.table(REL_H, S, T, D, D0, D1), PRECISION)
    dq = add_product(dq, dw, window_terms.table(REL_W, S, T, D, D0, D1), PRECISION)
    store(D_QKV + rows * 3 * channels, inside, dq, 1.0, D, D0, D1)
    q = load(QKV + rows * 3 * channels, inside, D, D0, D1, False)  # again: the loop is short of registers
    _store_table_gradient(D_TABLES, 0, place, dh, q, T, D, D0, D1, PRECISION)
    _store_table_gradient(D_TABLES, 1, place, dw, q, T, D, D0, D1, PRECISION)


@triton.jit
def _store_table_gradient(
    D_TABLES, WHICH: tl.constexpr, place, dg, q,
    T: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dg^T q, a tile [T, D]: dg [tokens, T] is the gradient of the products of q with one of the two tables."""
    tile = (WHICH * tl.num_programs(1).to(tl.int64) + place) * tl.num_programs(0) + tl.program_id(0)
    rows = tl.arange(0, T)
    pointers = D_TABLES + (tile * T + rows) * D
    store(pointers, rows < T, add_product(zeros(T, D0, D1), tl.trans(dg), q, PRECISION), 1.0, D, D0, D1)


@triton.jit
def backward_keys(
    QKV,  # [B, H, W, 3, heads, D]
    PAD,  # [3, heads, D]
    D_OUT,  # [B, H, W, heads, D]
    LSE,  # float32 [B, windows, heads, S * S]
    DELTA,  # float32 [B, windows, heads, S * S]
    TERMS,  # [B, windows, heads, S * S, R]
    D_QKV,  # [B, H, W, 3, heads, D]  its k and v are written here
    D_PAD,  # float32 [B, windows, tiles, 2, heads, D]  this program's share of the pad token's k and v gradients
    scale, lowest, heads, height, width, across, windows,
    S: tl.constexpr, T: tl.constexpr, R: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    N: tl.constexpr = S * S
    head, window, picture, place = _head(heads, windows)
    channels = heads * D
    QKV, D_OUT = first_rows(QKV, D_OUT, picture * height * width, head, channels, D)
    D_QKV, _ = first_rows(D_QKV, D_OUT, picture * height * width, head, channels, D)
    keys = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    at = _rows(QKV, PAD + head * D, keys, window, height, width, across, channels, S)
    k = load(at + channels, keys < N, D, D0, D1, False)
    v = load(at + 2 * channels, keys < N, D, D0, D1, False)
    one_hot = window_terms.one_hot(keys, S, R, k[0].dtype)
    dk, dv = zeros(BLOCK_N, D0, D1), zeros(BLOCK_N, D0, D1)
    for first in range(0, N, BLOCK_M):
        queries = first + tl.arange(0, BLOCK_M)
        rows, inside = _places(queries, window, height, width, across, S)
        # A query that the picture does not have got no answer: its do and delta are 0, and so is all it adds here.
        q = load(QKV + rows * 3 * channels, inside, D, D0, D1, False)
        do = load(D_OUT + rows * channels, inside, D, D0, D1, False)
        term = (place * N + queries)[:, None] * R + tl.arange(0, R)[None, :]
        terms = tl.load(TERMS + term, mask=(queries < N)[:, None], other=0.0)
        lse = tl.load(LSE + place * N + queries, mask=queries < N, other=float("inf"))
        delta = tl.load(DELTA + place * N + queries, mask=queries < N, other=0.0)
        s = scores(k, q, dot(one_hot, tl.trans(terms), None, PRECISION), PRECISION)  # [BLOCK_N, BLOCK_M]
        p = tl.exp2(s * (scale * LOG2E) - lse[None, :])
        ds = p * (scores(v, do, None, PRECISION) - delta[None, :])
        dv = add_product(dv, p.to(q[0].dtype), do, PRECISION)
        dk = add_product(dk, ds.to(q[0].dtype), q, PRECISION)
    rows, inside = _places(keys, window, height, width, across, S)
    beyond = ((keys < N) & ~inside)[:, None]
    tile = place // heads * tl.num_programs(0) + tl.program_id(0)
    D_PAD += tile * 2 * channels + head * D
    _store_gradient(D_QKV + rows * 3 * channels + channels, D_PAD, times(dk, scale), inside, beyond, D, D0, D1)
    _store_gradient(D_QKV + rows * 3 * channels + 2 * channels, D_PAD + channels, dv, inside, beyond, D, D0, D1)


@triton.jit
def _store_gradient(rows, D_PAD, x, inside, beyond, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """The picture's rows of the tile x where they belong, and the sum of the pad token's."""
    store(rows, inside, x, 1.0, D, D0, D1)
    columns = tl.arange(0, D0)
    tl.store(D_PAD + columns, tl.sum(tl.where(beyond, x[0], 0.0), 0), mask=columns < D)
    if D1 > 0:
        columns = D0 + tl.arange(0, D1)
        tl.store(D_PAD + columns, tl.sum(tl.where(beyond, x[1], 0.0), 0), mask=columns < D)
