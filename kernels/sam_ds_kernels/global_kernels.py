"""The kernels of ``rel_pos_attention_global``, whose docstring has the maths.

A program of ``forward`` and ``backward_queries`` owns BLOCK_M queries of a head and walks over tiles of BLOCK_N keys
that lie in one row of the grid; one of ``backward_keys`` owns such a tile and walks over the queries. D0 and D1 are the
parts of D (``tiles``). EVEN_M: tiles of queries end where the queries end.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import add_product, attend, first_rows, load, row_products, scores, store, zeros

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _head(heads):
    """Of the launch's second axis: the head, and its place among those of all pictures."""
    return tl.program_id(1) % heads, tl.program_id(1).to(tl.int64)


@triton.jit
def forward(
    QKV,  # [B, N, 3, heads, D]
    TERMS,  # [B, heads, H + W, N]  h over w, of every query, in units of log 2
    OUT,  # [B, N, heads, D]
    LSE,  # float32 [B, heads, N]  log2 of the softmax's denominator
    scale, num_tokens, heads, height,
    WIDTH: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVEN_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, place = _head(heads)
    channels = heads * D
    QKV, OUT = first_rows(QKV, OUT, place // heads * num_tokens, head, channels, D)
    TERMS += place * (height + WIDTH) * num_tokens
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    query_ok = queries < num_tokens
    q = load(QKV + queries * 3 * channels, query_ok, D, D0, D1, EVEN_M)
    answer = zeros(BLOCK_M, D0, D1)
    highest = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for first in tl.static_range(0, WIDTH, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        ok = columns < WIDTH
        at = (height + columns)[None, :] * num_tokens + queries[:, None]
        w = tl.load(TERMS + at, mask=query_ok[:, None] & ok[None, :], other=0.0).to(tl.float32)
        w = tl.where(ok[None, :], w / (scale * LOG2E), -float("inf"))
        for row in range(height):
            h = tl.load(TERMS + row * num_tokens + queries, mask=query_ok, other=0.0).to(tl.float32)
            keys = QKV + (row * WIDTH + columns) * 3 * channels + channels
            k = load(keys, ok, D, D0, D1, WIDTH % BLOCK_N == 0)
            s = scores(q, k, w, PRECISION)
            v = load(keys + channels, ok, D, D0, D1, WIDTH % BLOCK_N == 0)
            answer, highest, total = attend(s, v, h, answer, highest, total, scale * LOG2E, PRECISION)
    store(OUT + queries * channels, query_ok, answer, (1.0 / total)[:, None], D, D0, D1)
    tl.store(LSE + place * num_tokens + queries, highest + tl.log2(total), mask=query_ok)


@triton.jit
def backward_queries(
    QKV,  # [B, N, 3, heads, D]
    TERMS,  # [B, heads, H + W, N]
    OUT,  # [B, N, heads, D]
    D_OUT,  # [B, N, heads, D]
    LSE,  # float32 [B, heads, N]
    D_QKV,  # [B, N, 3, heads, D]  its q is written here, without what comes through the position terms
    D_TERMS,  # [B, heads, H + W, N]  written here
    DELTA,  # float32 [B, heads, N]  sum(do * o), written here for the other kernel
    scale, num_tokens, heads, height,
    WIDTH: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVEN_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, place = _head(heads)
    channels = heads * D
    QKV, OUT = first_rows(QKV, OUT, place // heads * num_tokens, head, channels, D)
    D_QKV, D_OUT = first_rows(D_QKV, D_OUT, place // heads * num_tokens, head, channels, D)
    TERMS += place * (height + WIDTH) * num_tokens
    D_TERMS += place * (height + WIDTH) * num_tokens
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    query_ok = queries < num_tokens
    q = load(QKV + queries * 3 * channels, query_ok, D, D0, D1, EVEN_M)
    do = load(D_OUT + queries * channels, query_ok, D, D0, D1, EVEN_M)
    delta = row_products(do, load(OUT + queries * channels, query_ok, D, D0, D1, EVEN_M))
    tl.store(DELTA + place * num_tokens + queries, delta, mask=query_ok)
    lse = tl.load(LSE + place * num_tokens + queries, mask=query_ok, other=0.0)
    dq = zeros(BLOCK_M, D0, D1)
    for first in tl.static_range(0, WIDTH, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        ok = columns < WIDTH
        at, at_ok = (height + columns)[None, :] * num_tokens + queries[:, None], query_ok[:, None] & ok[None, :]
        w = tl.load(TERMS + at, mask=at_ok, other=0.0).to(tl.float32) - lse[:, None]
        w = tl.where(ok[None, :], w, -float("inf"))
        dw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if first > 0:
            tl.debug_barrier()  # other warps may have stored what _add_row loads
        for row in range(height):
            keys = QKV + (row * WIDTH + columns) * 3 * channels + channels
            k = load(keys, ok, D, D0, D1, WIDTH % BLOCK_N == 0)
            v = load(keys + channels, ok, D, D0, D1, WIDTH % BLOCK_N == 0)
            h = tl.load(TERMS + row * num_tokens + queries, mask=query_ok, other=0.0).to(tl.float32)
            p = tl.exp2(scores(q, k, None, PRECISION) * (scale * LOG2E) + (w + h[:, None]))
            ds = p * (scores(do, v, None, PRECISION) - delta[:, None])
            dw += ds
            _add_row(D_TERMS + row * num_tokens + queries, tl.sum(ds, 1), query_ok, first > 0)
            dq = add_product(dq, ds.to(QKV.dtype.element_ty), k, PRECISION)
        tl.store(D_TERMS + at, dw.to(D_TERMS.dtype.element_ty), mask=at_ok)
    store(D_QKV + queries * 3 * channels, query_ok, dq, scale, D, D0, D1)


@triton.jit
def _add_row(pointers, x, ok, AGAIN: tl.constexpr):
    """Store x; AGAIN: add to what this program stored for the row's tiles before."""
    if AGAIN:
        x += tl.load(pointers, mask=ok, other=0.0).to(tl.float32)
    tl.store(pointers, x.to(pointers.dtype.element_ty), mask=ok)


@triton.jit
def backward_keys(
    QKV,  # [B, N, 3, heads, D]
    TERMS,  # [B, heads, H + W, N]
    D_OUT,  # [B, N, heads, D]
    LSE,  # float32 [B, heads, N]
    DELTA,  # float32 [B, heads, N]
    D_QKV,  # [B, N, 3, heads, D]  its k and v are written here
    scale, num_tokens, heads, height,
    WIDTH: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVEN_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, place = _head(heads)
    channels = heads * D
    QKV, D_OUT = first_rows(QKV, D_OUT, place // heads * num_tokens, head, channels, D)
    D_QKV, _ = first_rows(D_QKV, D_OUT, place // heads * num_tokens, head, channels, D)
    TERMS += place * (height + WIDTH) * num_tokens
    TILES: tl.constexpr = (WIDTH + BLOCK_N - 1) // BLOCK_N
    row = tl.program_id(0) // TILES
    columns = tl.program_id(0) % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    ok = columns < WIDTH
    own = (row * WIDTH + columns) * 3 * channels + channels
    k = load(QKV + own, ok, D, D0, D1, WIDTH % BLOCK_N == 0)
    v = load(QKV + own + channels, ok, D, D0, D1, WIDTH % BLOCK_N == 0)
    dk, dv = zeros(BLOCK_N, D0, D1), zeros(BLOCK_N, D0, D1)
    for first in range(0, num_tokens, BLOCK_M):
        queries = first + tl.arange(0, BLOCK_M)
        query_ok = queries < num_tokens
        q = load(QKV + queries * 3 * channels, query_ok, D, D0, D1, EVEN_M)
        do = load(D_OUT + queries * channels, query_ok, D, D0, D1, EVEN_M)
        # Beyond the last query the denominator is infinite, which makes p 0.
        lse = tl.load(LSE + place * num_tokens + queries, mask=query_ok, other=float("inf"))
        delta = tl.load(DELTA + place * num_tokens + queries, mask=query_ok, other=0.0)
        h = tl.load(TERMS + row * num_tokens + queries, mask=query_ok, other=0.0).to(tl.float32) - lse
        at = (height + columns)[:, None] * num_tokens + queries[None, :]
        w = tl.load(TERMS + at, mask=ok[:, None] & query_ok[None, :], other=0.0).to(tl.float32)
        p = tl.exp2(scores(k, q, None, PRECISION) * (scale * LOG2E) + (w + h[None, :]))  # [BLOCK_N, BLOCK_M]
        ds = p * (scores(v, do, None, PRECISION) - delta[None, :])
        dv = add_product(dv, p.to(QKV.dtype.element_ty), do, PRECISION)
        dk = add_product(dk, ds.to(QKV.dtype.element_ty), q, PRECISION)
    store(D_QKV + own, ok, dk, scale, D, D0, D1)
    store(D_QKV + own + channels, ok, dv, 1.0, D, D0, D1)
