"""Attention with decomposed relative positions on a CPU: the scores of a block of queries at a time, in the cache.

With s_ij = q_i . k_j + h_i(row of j) + w_i(column of j) and p_ij = exp(s_ij - l_i), l_i = log sum_j exp(s_ij),

    o_i = sum_j p_ij v_j
    ds_ij = p_ij (g_i . v_j - g_i . o_i)          for the gradient g of o
    dq_i = sum_j ds_ij k_j,  dk_j = sum_i ds_ij q_i,  dv_j = sum_i p_ij g_i
    dh_i(y) = sum of ds_ij over the keys of row y,  dw_i(x) over those of column x

and l is all that the backward needs beside inputs and output (FlashAttention, arXiv 2205.14135). torch's own CPU kernel
does the same, but takes the positions as further channels only: three times the work where a grid has 64 rows and
columns and a head 64 channels. Here they are one pass over scores that are in the cache anyway.

Scores are float32, of float64 inputs float64. Two tiles serve all blocks: new ones would cost more than the products.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_TILE = 2**18  # scores of a block for each thread: 1 MB


def blocked_attention(q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    """Softmax over the keys of q . k / sqrt(d) + the position terms, times v.

    Args:
        q, k, v: [B, heads, N, d], N = H * W, of any float type.
        bias_h, bias_w: [B, heads, H, W, H] and [B, heads, H, W, W], by key row and key column.

    Returns:
        [B, heads, N, d], of q's type.
    """
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    inputs = (q * q.shape[-1] ** -0.5, k, v, bias_h.flatten(2, 3), bias_w.flatten(2, 3))
    heads = (x.to(dtype).flatten(0, 1).contiguous() for x in inputs)
    with torch.autocast(q.device.type, enabled=False):
        out: Tensor = _Blocked.apply(*heads)  # type: ignore[no-untyped-call]
    return out.to(q.dtype).unflatten(0, q.shape[:2])


class _Blocked(torch.autograd.Function):
    """On [heads, N, d] and biases [heads, N, H] and [heads, N, W]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
        out, log_sums = torch.empty_like(v), q.new_empty(*q.shape[:2], 1)
        tile = _new_tile(q)
        for head, rows in _blocks(q, len(tile)):
            block = (head, rows)
            scores = _scores(q[block], k[head], bias_h[block], bias_w[block], tile)
            top = scores.amax(1, keepdim=True)
            shares = scores.sub_(top).exp_()
            sums = shares.sum(1, keepdim=True)
            torch.mm(shares, v[head], out=out[block]).div_(sums)
            log_sums[block] = sums.log_().add_(top)
        ctx.save_for_backward(q, k, v, bias_h, bias_w, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, bias_h, bias_w, out, log_sums = ctx.saved_tensors
        grad, shift = grad.contiguous(), -(grad * out).sum(-1, keepdim=True)
        bias_h = bias_h - log_sums
        d_q, d_bias_h, d_bias_w = torch.empty_like(q), torch.empty_like(bias_h), torch.empty_like(bias_w)
        d_k, d_v = torch.zeros_like(k), torch.zeros_like(v)
        tile, other = _new_tile(q), _new_tile(q)
        for head, rows in _blocks(q, len(tile)):
            block = (head, rows)
            shares = _scores(q[block], k[head], bias_h[block], bias_w[block], tile).exp_()
            d_v[head].addmm_(shares.t(), grad[block])
            d_scores = torch.addmm(shift[block], grad[block], v[head].t(), out=other[: len(shares)]).mul_(shares)
            torch.mm(d_scores, k[head], out=d_q[block])
            d_k[head].addmm_(d_scores.t(), q[block])
            by_place = d_scores.unflatten(1, (bias_h.shape[2], bias_w.shape[2]))
            torch.sum(by_place, 2, out=d_bias_h[block])
            torch.sum(by_place, 1, out=d_bias_w[block])
        return d_q, d_k, d_v, d_bias_h, d_bias_w


def _new_tile(q: Tensor) -> Tensor:
    """Memory for the scores of a block of queries, [n, N]."""
    tokens = q.shape[1]
    return q.new_empty(min(tokens, max(1, _TILE * torch.get_num_threads() // tokens)), tokens)


def _blocks(q: Tensor, size: int) -> Iterator[tuple[int, slice]]:
    """Of q [heads, N, d]: every head, and every block of its queries."""
    heads, tokens, _ = q.shape
    for head in range(heads):
        for start in range(0, tokens, size):
            yield head, slice(start, min(start + size, tokens))


def _scores(q: Tensor, k: Tensor, bias_h: Tensor, bias_w: Tensor, tile: Tensor) -> Tensor:
    """Of a block of queries, [n, N], in ``tile``."""
    scores = tile[: len(q)]
    places = scores.unflatten(1, (bias_h.shape[1], bias_w.shape[1]))
    torch.add(bias_h.unsqueeze(2), bias_w.unsqueeze(1), out=places)
    return scores.addmm_(q, k.t())
