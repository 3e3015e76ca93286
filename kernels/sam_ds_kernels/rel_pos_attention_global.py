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

Scores and position terms are kept in units of log 2: exp2 is one instruction, exp is not.
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from .checks import check_attention
from .configs import config_for, float_precision, of_type, split_head_dim
from .global_kernels import backward_keys, backward_queries, forward
from .launch import launch

_LOG2E = math.log2(math.e)


def _launch_arguments(qkv: Tensor, kernel: str) -> dict[str, object]:
    _, height, width, _, heads, head_dim = qkv.shape
    config = config_for(of_type(kernel, qkv), head_dim, qkv.device)
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
        "BLOCK_M": config["block_m"],
        "BLOCK_N": min(config["block_n"], max(16, triton.next_power_of_2(width))),  # within one row of the grid
        "EVEN_M": height * width % config["block_m"] == 0,
        "PRECISION": float_precision(qkv.dtype),
        "num_warps": config["num_warps"],
        "num_stages": config["num_stages"],
    }


def run_forward(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, Tensor]:
    batch, height, width, _, heads, head_dim = qkv.shape
    out = qkv.new_empty(batch, height, width, heads, head_dim)
    lse = qkv.new_empty(batch, heads, height * width, dtype=torch.float32)
    terms = _position_terms(qkv[:, :, :, 0], rel_h, rel_w)
    arguments = _launch_arguments(qkv, "rel_pos_attention_global_forward")
    grid = (triton.cdiv(height * width, arguments["BLOCK_M"]), batch * heads)
    launch(forward, grid, qkv, terms, out, lse, **arguments)
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
    launch(backward_queries, grid, qkv, terms, out, d_out, lse, d_qkv, d_terms, delta, **arguments)
    arguments = _launch_arguments(qkv, "rel_pos_attention_global_backward_keys")
    grid = (height * triton.cdiv(width, arguments["BLOCK_N"]), batch * heads)
    launch(backward_keys, grid, qkv, terms, d_out, lse, delta, d_qkv, **arguments)
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
    """q [B, H, W, heads, D] to [B, heads, H + W, H * W]: h and w of every query, in units of log 2."""
    h = torch.einsum("byxnd,ydk->bnkyx", q, _windows(rel_h * _LOG2E, q.shape[1]))
    w = torch.einsum("byxnd,xdk->bnkyx", q, _windows(rel_w * _LOG2E, q.shape[2]))
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
