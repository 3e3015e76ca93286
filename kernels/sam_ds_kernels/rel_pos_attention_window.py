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
from torch import Tensor

from .checks import HEAD_DIMS, Refused, aligned, check_attention, check_contiguous, check_like
from .configs import config_for, float_precision, of_type, split_head_dim
from .launch import launch
from .window_kernels import backward_keys, backward_queries, forward

LARGEST_WINDOW = 32


def largest_head_dim(dtype: torch.dtype) -> int:
    """With float32's larger heads the kernels would keep part of their tiles in memory, not in registers."""
    return 128 if dtype == torch.float32 else HEAD_DIMS[1]


def _launch_arguments(qkv: Tensor, window: int, kernel: str) -> dict[str, object]:
    _, height, width, _, heads, head_dim = qkv.shape
    across = triton.cdiv(width, window)
    config = config_for(of_type(kernel, qkv), head_dim, qkv.device)
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
        "BLOCK_M": config["block_m"],
        "BLOCK_N": config["block_n"],
        "MASK": qkv.dtype == torch.float16,
        "PRECISION": float_precision(qkv.dtype),
        "num_warps": config["num_warps"],
        "num_stages": config["num_stages"],
    }


def run_forward(qkv: Tensor, pad: Tensor, rel_h: Tensor, rel_w: Tensor, window: int) -> tuple[Tensor, Tensor]:
    qkv, pad = aligned(qkv), aligned(pad)
    arguments = _launch_arguments(qkv, window, "rel_pos_attention_window_forward")
    out, lse = _empty_answer(qkv, window)
    grid = (triton.cdiv(window**2, arguments["BLOCK_M"]), lse.numel() // window**2)
    launch(forward, grid, qkv, pad, rel_h, rel_w, out, lse, **arguments)
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
    qkv, pad = aligned(qkv), aligned(pad)
    batch, windows, heads, num_tokens = lse.shape
    head_dim = qkv.shape[-1]
    d_qkv, delta = torch.empty_like(qkv), torch.empty_like(lse)

    arguments = _launch_arguments(qkv, window, "rel_pos_attention_window_backward_queries")
    tiles = triton.cdiv(num_tokens, arguments["BLOCK_M"])
    terms = qkv.new_empty(batch, windows, heads, num_tokens, arguments["R"])
    d_tables = lse.new_empty(2, batch * windows * heads * tiles, arguments["T"], head_dim)
    grid = (tiles, batch * windows * heads)
    launch(
        backward_queries,
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
    launch(backward_keys, grid, qkv, pad, d_out, lse, delta, terms, d_qkv, d_pad, **arguments)
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
            float32; D a multiple of 8 and at most 256, for float32 128.
        pad: [3, heads, D], contiguous: what that layer gives for a token beyond the grid, its bias. Its q is not used.
        rel_h, rel_w: [2 * window - 1, D], of qkv's type; row i is the offset i - (window - 1) from key to query.
        window: tokens along a window's side, at most 32.

    Returns:
        [B, H, W, heads, D].

    Raises:
        ValueError: a shape, type, device or layout that the kernels do not take; the message has the values.
    """
    if not 1 <= window <= LARGEST_WINDOW:
        raise Refused(f"windows must have sides of 1 to {LARGEST_WINDOW} tokens, not {window}")
    check_attention(qkv, rel_h, rel_w, (window, window))
    if qkv.shape[-1] > largest_head_dim(qkv.dtype):
        raise Refused(f"heads of float32 must have at most 128 channels in windows, not {qkv.shape[-1]}")
    check_like("pad", pad, qkv, tuple(qkv.shape[3:]))
    check_contiguous("pad", pad)
    return _forward(qkv, pad, rel_h.contiguous(), rel_w.contiguous(), window)[0]
