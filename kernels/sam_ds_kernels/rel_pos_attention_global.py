"""Attention over a whole H x W grid with SAM's decomposed relative positions, forward and backward.

For the query at (qh, qw) and the key at (kh, kw) of one head,

    s = scale * q.k + h[kh] + w[kw]      h[kh] = q . R_h[qh - kh + H - 1],   w[kw] = q . R_w[qw - kw + W - 1]
    p = softmax over keys of s,          o = sum p v

h and w take the unscaled q. They have H + W values a query where the scores have H * W, so they are made beforehand by
two small products (``_position_terms``), and the kernels add them to scores that never leave the registers:

  - a tile of keys lies within one row of the grid, so h is one number a query and tile and w a tile that does not
    change from row to row: the column of tiles is the outer loop and the row the inner one
  - w / scale seeds the accumulator of q.k; h, constant along a tile, joins the running maximum: neither costs a pass
  - dh is then the row sum of ds and dw the sum of ds over the inner loop: stored once, without atomics

With d = sum(do * o) of a query, ds = p (do.v - d), dq = scale ds k + (dh, dw through the tables), dk = scale ds^T q,
dv = p^T do. Two backward kernels, one owning queries and one owning keys, take 7 products where one kernel with atomics
takes 5; in return two runs give the same bits.

Scores are kept in units of log 2: exp2 is one instruction, exp is not.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_attention
from .configs import config_for, float_precision, split_head_dim
from .launch import launch

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rows(PTR, rows, row_ok, stride, part: tl.constexpr, start: tl.constexpr, D: tl.constexpr, EVEN: tl.constexpr):
    """Rows of a matrix with D columns: [rows, part] from column ``start`` on, 0 beyond the edges."""
    columns = start + tl.arange(0, part)
    pointers = PTR + rows[:, None] * stride + columns[None, :]
    if EVEN and start + part <= D:
        return tl.load(pointers)
    if start + part <= D:
        return tl.load(pointers, mask=row_ok[:, None], other=0.0)
    return tl.load(pointers, mask=row_ok[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def _store_rows(PTR, x, rows, row_ok, stride, part: tl.constexpr, start: tl.constexpr, D: tl.constexpr):
    columns = start + tl.arange(0, part)
    pointers = PTR + rows[:, None] * stride + columns[None, :]
    tl.store(pointers, x.to(PTR.dtype.element_ty), mask=row_ok[:, None] & (columns < D)[None, :])


@triton.jit
def _forward_kernel(
    QKV,  # [B, N, 3, heads, D]
    TERMS,  # [B, heads, H + W, N]  h over w, of every query
    OUT,  # [B, N, heads, D]
    LSE,  # float32 [B, heads, N]  log2 of the softmax's denominator
    scale,
    num_tokens,
    heads,
    height,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,  # D in two parts, each a power of two: 80 = 64 + 16; the second may reach beyond D, or be 0
    D1: tl.constexpr,
    BLOCK_M: tl.constexpr,  # queries a program
    BLOCK_N: tl.constexpr,  # keys a tile, all of one row of the grid
    EVEN_M: tl.constexpr,  # the tiles of queries end with the queries
    PRECISION: tl.constexpr,
):
    head, batch = tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)
    channels = heads * D
    QKV += batch * num_tokens * 3 * channels + head * D
    OUT += batch * num_tokens * channels + head * D
    TERMS += (batch * heads + head) * (height + WIDTH) * num_tokens
    LSE += (batch * heads + head) * num_tokens
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    query_ok = queries < num_tokens
    EVEN_N: tl.constexpr = WIDTH % BLOCK_N == 0

    q0 = _rows(QKV, queries, query_ok, 3 * channels, D0, 0, D, EVEN_M)
    acc0 = tl.zeros((BLOCK_M, D0), tl.float32)
    if D1 > 0:
        q1 = _rows(QKV, queries, query_ok, 3 * channels, D1, D0, D, EVEN_M)
        acc1 = tl.zeros((BLOCK_M, D1), tl.float32)
    highest = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    to_log2 = scale * LOG2E
    for first in tl.static_range(0, WIDTH, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        column_ok = columns < WIDTH
        w = tl.load(
            TERMS + (height + columns)[None, :] * num_tokens + queries[:, None],
            mask=query_ok[:, None] & column_ok[None, :],
            other=0.0,
        )
        w = tl.where(column_ok[None, :], w.to(tl.float32) / scale, -float("inf"))
        for row in range(height):
            keys = row * WIDTH + columns
            h = tl.load(TERMS + row * num_tokens + queries, mask=query_ok, other=0.0).to(tl.float32) * LOG2E
            k0 = _rows(QKV + channels, keys, column_ok, 3 * channels, D0, 0, D, EVEN_N)
            s = tl.dot(q0, tl.trans(k0), w, input_precision=PRECISION)
            if D1 > 0:
                k1 = _rows(QKV + channels, keys, column_ok, 3 * channels, D1, D0, D, EVEN_N)
                s = tl.dot(q1, tl.trans(k1), s, input_precision=PRECISION)
            new = tl.maximum(highest, tl.max(s, 1) * to_log2 + h)
            p = tl.exp2(s * to_log2 - (new - h)[:, None])
            shrink = tl.exp2(highest - new)
            total = total * shrink + tl.sum(p, 1)
            highest = new
            p = p.to(QKV.dtype.element_ty)
            v0 = _rows(QKV + 2 * channels, keys, column_ok, 3 * channels, D0, 0, D, EVEN_N)
            acc0 = tl.dot(p, v0, acc0 * shrink[:, None], input_precision=PRECISION)
            if D1 > 0:
                v1 = _rows(QKV + 2 * channels, keys, column_ok, 3 * channels, D1, D0, D, EVEN_N)
                acc1 = tl.dot(p, v1, acc1 * shrink[:, None], input_precision=PRECISION)
    share = (1.0 / total)[:, None]
    _store_rows(OUT, acc0 * share, queries, query_ok, channels, D0, 0, D)
    if D1 > 0:
        _store_rows(OUT, acc1 * share, queries, query_ok, channels, D1, D0, D)
    tl.store(LSE + queries, highest + tl.log2(total), mask=query_ok)


@triton.jit
def _backward_queries_kernel(
    QKV,  # [B, N, 3, heads, D]
    TERMS,  # [B, heads, H + W, N]
    OUT,  # [B, N, heads, D]
    D_OUT,  # [B, N, heads, D]
    LSE,  # float32 [B, heads, N]
    D_QKV,  # [B, N, 3, heads, D]  its q is written here, without what comes through the position terms
    D_TERMS,  # [B, heads, H + W, N]  written here
    DELTA,  # float32 [B, heads, N]  sum(do * o), written here for the other kernel
    scale,
    num_tokens,
    heads,
    height,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EVEN_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head, batch = tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)
    channels = heads * D
    QKV += batch * num_tokens * 3 * channels + head * D
    D_QKV += batch * num_tokens * 3 * channels + head * D
    OUT += batch * num_tokens * channels + head * D
    D_OUT += batch * num_tokens * channels + head * D
    TERMS += (batch * heads + head) * (height + WIDTH) * num_tokens
    D_TERMS += (batch * heads + head) * (height + WIDTH) * num_tokens
    LSE += (batch * heads + head) * num_tokens
    DELTA += (batch * heads + head) * num_tokens
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    query_ok = queries < num_tokens
    EVEN_N: tl.constexpr = WIDTH % BLOCK_N == 0

    q0 = _rows(QKV, queries, query_ok, 3 * channels, D0, 0, D, EVEN_M)
    do0 = _rows(D_OUT, queries, query_ok, channels, D0, 0, D, EVEN_M)
    o0 = _rows(OUT, queries, query_ok, channels, D0, 0, D, EVEN_M)
    delta = tl.sum(do0.to(tl.float32) * o0.to(tl.float32), 1)
    dq0 = tl.zeros((BLOCK_M, D0), tl.float32)
    if D1 > 0:
        q1 = _rows(QKV, queries, query_ok, 3 * channels, D1, D0, D, EVEN_M)
        do1 = _rows(D_OUT, queries, query_ok, channels, D1, D0, D, EVEN_M)
        o1 = _rows(OUT, queries, query_ok, channels, D1, D0, D, EVEN_M)
        delta += tl.sum(do1.to(tl.float32) * o1.to(tl.float32), 1)
        dq1 = tl.zeros((BLOCK_M, D1), tl.float32)
    tl.store(DELTA + queries, delta, mask=query_ok)
    lse = tl.load(LSE + queries, mask=query_ok, other=0.0)
    to_log2 = scale * LOG2E
    for first in tl.static_range(0, WIDTH, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        column_ok = columns < WIDTH
        term = (height + columns)[None, :] * num_tokens + queries[:, None]
        term_ok = query_ok[:, None] & column_ok[None, :]
        w = tl.load(TERMS + term, mask=term_ok, other=0.0).to(tl.float32) * LOG2E - lse[:, None]
        w = tl.where(column_ok[None, :], w, -float("inf"))
        dw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for row in range(height):
            keys = row * WIDTH + columns
            h = tl.load(TERMS + row * num_tokens + queries, mask=query_ok, other=0.0).to(tl.float32) * LOG2E
            k0 = _rows(QKV + channels, keys, column_ok, 3 * channels, D0, 0, D, EVEN_N)
            v0 = _rows(QKV + 2 * channels, keys, column_ok, 3 * channels, D0, 0, D, EVEN_N)
            s = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
            dp = tl.dot(do0, tl.trans(v0), input_precision=PRECISION)
            if D1 > 0:
                k1 = _rows(QKV + channels, keys, column_ok, 3 * channels, D1, D0, D, EVEN_N)
                v1 = _rows(QKV + 2 * channels, keys, column_ok, 3 * channels, D1, D0, D, EVEN_N)
                s = tl.dot(q1, tl.trans(k1), s, input_precision=PRECISION)
                dp = tl.dot(do1, tl.trans(v1), dp, input_precision=PRECISION)
            p = tl.exp2(s * to_log2 + (w + h[:, None]))
            ds = p * (dp - delta[:, None])
            dw += ds
            dh = tl.sum(ds, 1)
            if first > 0:  # the row's earlier tiles were this program's too
                dh += tl.load(D_TERMS + row * num_tokens + queries, mask=query_ok, other=0.0).to(tl.float32)
            tl.store(D_TERMS + row * num_tokens + queries, dh.to(D_TERMS.dtype.element_ty), mask=query_ok)
            ds = ds.to(QKV.dtype.element_ty)
            dq0 = tl.dot(ds, k0, dq0, input_precision=PRECISION)
            if D1 > 0:
                dq1 = tl.dot(ds, k1, dq1, input_precision=PRECISION)
        tl.store(D_TERMS + term, dw.to(D_TERMS.dtype.element_ty), mask=term_ok)
    _store_rows(D_QKV, dq0 * scale, queries, query_ok, 3 * channels, D0, 0, D)
    if D1 > 0:
        _store_rows(D_QKV, dq1 * scale, queries, query_ok, 3 * channels, D1, D0, D)


@triton.jit
def _backward_keys_kernel(
    QKV,  # [B, N, 3, heads, D]
    TERMS,  # [B, heads, H + W, N]
    D_OUT,  # [B, N, heads, D]
    LSE,  # float32 [B, heads, N]
    DELTA,  # float32 [B, heads, N]
    D_QKV,  # [B, N, 3, heads, D]  its k and v are written here
    scale,
    num_tokens,
    heads,
    height,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    BLOCK_M: tl.constexpr,  # queries a tile
    BLOCK_N: tl.constexpr,  # keys a program, all of one row of the grid
    EVEN_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head, batch = tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)
    channels = heads * D
    QKV += batch * num_tokens * 3 * channels + head * D
    D_QKV += batch * num_tokens * 3 * channels + head * D
    D_OUT += batch * num_tokens * channels + head * D
    TERMS += (batch * heads + head) * (height + WIDTH) * num_tokens
    LSE += (batch * heads + head) * num_tokens
    DELTA += (batch * heads + head) * num_tokens
    TILES: tl.constexpr = (WIDTH + BLOCK_N - 1) // BLOCK_N
    row = tl.program_id(0) // TILES
    columns = tl.program_id(0) % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    column_ok = columns < WIDTH
    keys = row * WIDTH + columns
    EVEN_N: tl.constexpr = WIDTH % BLOCK_N == 0

    k0 = _rows(QKV + channels, keys, column_ok, 3 * channels, D0, 0, D, EVEN_N)
    v0 = _rows(QKV + 2 * channels, keys, column_ok, 3 * channels, D0, 0, D, EVEN_N)
    dk0 = tl.zeros((BLOCK_N, D0), tl.float32)
    dv0 = tl.zeros((BLOCK_N, D0), tl.float32)
    if D1 > 0:
        k1 = _rows(QKV + channels, keys, column_ok, 3 * channels, D1, D0, D, EVEN_N)
        v1 = _rows(QKV + 2 * channels, keys, column_ok, 3 * channels, D1, D0, D, EVEN_N)
        dk1 = tl.zeros((BLOCK_N, D1), tl.float32)
        dv1 = tl.zeros((BLOCK_N, D1), tl.float32)
    to_log2 = scale * LOG2E
    for start in range(0, num_tokens, BLOCK_M):
        queries = start + tl.arange(0, BLOCK_M)
        query_ok = queries < num_tokens
        q0 = _rows(QKV, queries, query_ok, 3 * channels, D0, 0, D, EVEN_M)
        do0 = _rows(D_OUT, queries, query_ok, channels, D0, 0, D, EVEN_M)
        s = tl.dot(k0, tl.trans(q0), input_precision=PRECISION)  # [BLOCK_N, BLOCK_M]
        dp = tl.dot(v0, tl.trans(do0), input_precision=PRECISION)
        if D1 > 0:
            q1 = _rows(QKV, queries, query_ok, 3 * channels, D1, D0, D, EVEN_M)
            do1 = _rows(D_OUT, queries, query_ok, channels, D1, D0, D, EVEN_M)
            s = tl.dot(k1, tl.trans(q1), s, input_precision=PRECISION)
            dp = tl.dot(v1, tl.trans(do1), dp, input_precision=PRECISION)
        lse = tl.load(LSE + queries, mask=query_ok, other=float("inf"))  # beyond the edge p becomes 0
        delta = tl.load(DELTA + queries, mask=query_ok, other=0.0)
        h = tl.load(TERMS + row * num_tokens + queries, mask=query_ok, other=0.0).to(tl.float32)
        w = tl.load(
            TERMS + (height + columns)[:, None] * num_tokens + queries[None, :],
            mask=column_ok[:, None] & query_ok[None, :],
            other=0.0,
        )
        p = tl.exp2(s * to_log2 + (w.to(tl.float32) * LOG2E + (h * LOG2E - lse)[None, :]))
        ds = (p * (dp - delta[None, :])).to(QKV.dtype.element_ty)
        p = p.to(QKV.dtype.element_ty)
        dv0 = tl.dot(p, do0, dv0, input_precision=PRECISION)
        dk0 = tl.dot(ds, q0, dk0, input_precision=PRECISION)
        if D1 > 0:
            dv1 = tl.dot(p, do1, dv1, input_precision=PRECISION)
            dk1 = tl.dot(ds, q1, dk1, input_precision=PRECISION)
    _store_rows(D_QKV + channels, dk0 * scale, keys, column_ok, 3 * channels, D0, 0, D)
    _store_rows(D_QKV + 2 * channels, dv0, keys, column_ok, 3 * channels, D0, 0, D)
    if D1 > 0:
        _store_rows(D_QKV + channels, dk1 * scale, keys, column_ok, 3 * channels, D1, D0, D)
        _store_rows(D_QKV + 2 * channels, dv1, keys, column_ok, 3 * channels, D1, D0, D)


def _launch_arguments(qkv: Tensor, kernel: str) -> dict[str, object]:
    _, height, width, _, heads, head_dim = qkv.shape
    config = config_for(kernel, head_dim, qkv.device)
    first, second = split_head_dim(head_dim)
    return {
        "scale": head_dim**-0.5,
        "num_tokens": height * width,
        "heads": heads,
        "height": height,
        "WIDTH": width,
        "D": head_dim,
        "D0": first,
        "D1": second,
        "BLOCK_M": config.block_m,
        "BLOCK_N": min(config.block_n, max(16, triton.next_power_of_2(width))),  # within one row of the grid
        "EVEN_M": height * width % config.block_m == 0,
        "PRECISION": float_precision(qkv.dtype),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


def run_forward(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, Tensor]:
    batch, height, width, _, heads, head_dim = qkv.shape
    out = qkv.new_empty(batch, height, width, heads, head_dim)
    lse = qkv.new_empty(batch, heads, height * width, dtype=torch.float32)
    terms = _position_terms(qkv[:, :, :, 0], rel_h, rel_w)
    arguments = _launch_arguments(qkv, "rel_pos_attention_global_forward")
    grid = (triton.cdiv(height * width, arguments["BLOCK_M"]), batch * heads)
    launch(_forward_kernel, grid, qkv, terms, out, lse, **arguments)
    return out, lse


_forward = torch.library.custom_op("sam_ds::rel_pos_attention_global", run_forward, mutates_args=())


@_forward.register_fake
def _(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, Tensor]:
    batch, height, width, _, heads, head_dim = qkv.shape
    lse = qkv.new_empty(batch, heads, height * width, dtype=torch.float32)
    return qkv.new_empty(batch, height, width, heads, head_dim), lse


def run_backward(
    d_out: Tensor, qkv: Tensor, rel_h: Tensor, rel_w: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, height, width, _, heads, _ = qkv.shape
    q = qkv[:, :, :, 0]
    terms = _position_terms(q, rel_h, rel_w)  # cheaper made again than kept
    d_qkv, d_terms, delta = torch.empty_like(qkv), torch.empty_like(terms), torch.empty_like(lse)
    arguments = _launch_arguments(qkv, "rel_pos_attention_global_backward_queries")
    grid = (triton.cdiv(height * width, arguments["BLOCK_M"]), batch * heads)
    launch(_backward_queries_kernel, grid, qkv, terms, out, d_out, lse, d_qkv, d_terms, delta, **arguments)
    arguments = _launch_arguments(qkv, "rel_pos_attention_global_backward_keys")
    grid = (height * triton.cdiv(width, arguments["BLOCK_N"]), batch * heads)
    launch(_backward_keys_kernel, grid, qkv, terms, d_out, lse, delta, d_qkv, **arguments)
    d_q, d_rel_h, d_rel_w = _position_terms_backward(d_terms, q, rel_h, rel_w)
    d_qkv[:, :, :, 0] += d_q
    return d_qkv, d_rel_h, d_rel_w


_backward = torch.library.custom_op("sam_ds::rel_pos_attention_global_backward", run_backward, mutates_args=())


@_backward.register_fake
def _(
    d_out: Tensor, qkv: Tensor, rel_h: Tensor, rel_w: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(qkv), torch.empty_like(rel_h), torch.empty_like(rel_w)


def _setup(ctx, inputs, output) -> None:
    qkv, rel_h, rel_w = inputs
    ctx.save_for_backward(qkv, rel_h, rel_w, *output)
    ctx.set_materialize_grads(False)


def _autograd(ctx, d_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if d_out is None:
        return None, None, None
    return _backward(d_out.contiguous(), *ctx.saved_tensors)


_forward.register_autograd(_autograd, setup_context=_setup)


def _position_terms(q: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """q [B, H, W, heads, D] to [B, heads, H + W, H * W]: h and w of every query."""
    h = torch.einsum("byxnd,ydk->bnkyx", q, _windows(rel_h, q.shape[1]))
    w = torch.einsum("byxnd,xdk->bnkyx", q, _windows(rel_w, q.shape[2]))
    return torch.cat([h, w], 2).flatten(3)


def _position_terms_backward(d_terms: Tensor, q: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q and of both tables, from that of the terms."""
    height, width = q.shape[1:3]
    dh, dw = d_terms.unflatten(3, (height, width)).split([height, width], 2)
    d_q = torch.einsum("bnkyx,ydk->byxnd", dh, _windows(rel_h, height))
    d_q += torch.einsum("bnkyx,xdk->byxnd", dw, _windows(rel_w, width))
    d_rel_h = _sum_offsets(torch.einsum("bnkyx,byxnd->ykd", dh, q))
    d_rel_w = _sum_offsets(torch.einsum("bnkyx,byxnd->xkd", dw, q))
    return d_q, d_rel_h, d_rel_w


def _windows(table: Tensor, size: int) -> Tensor:
    """[2 * size - 1, D] to [size (query), D, size (key)]: the row of every offset from key to query."""
    return table.flip(0).unfold(0, size, 1).flip(0)


def _sum_offsets(grad: Tensor) -> Tensor:
    """[size (query), size (key), D] to [2 * size - 1, D], by the offset: a shear and a sum, without atomics."""
    size, _, head_dim = grad.shape
    wide = torch.nn.functional.pad(grad.flip(1), (0, 0, 0, size)).flatten(0, 1)  # [size * 2 size, D]
    return wide[: size * (2 * size - 1)].view(size, 2 * size - 1, head_dim).sum(0)


def rel_pos_attention_global(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """Attend over the whole grid.

    Args:
        qkv: [B, H, W, 3, heads, D], contiguous: the output of the layer that makes q, k and v. bfloat16, float16 or
            float32; D at most 256 and a multiple of 8.
        rel_h, rel_w: [2H - 1, D] and [2W - 1, D], of qkv's type; row i is the offset i - (H - 1) from key to query.

    Returns:
        [B, H, W, heads, D].

    Raises:
        ValueError: a shape, type, device or layout that the kernels do not take; the message has the values.
    """
    check_attention(qkv, rel_h, rel_w, (qkv.shape[1], qkv.shape[2]) if qkv.dim() == 6 else (0, 0))
    return _forward(qkv, rel_h, rel_w)[0]
