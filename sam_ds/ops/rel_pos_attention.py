"""Self-attention on a grid, or in windows of it, with SAM's decomposed relative positions.

For a query at (qh, qw) and a key at (kh, kw) of an H x W grid,

    score = scale * q.k + q.rel_h[qh - kh + H - 1] + q.rel_w[qw - kw + W - 1],   scale = d ** -0.5

where the two position terms take the *unscaled* query. Source: segment-anything's image encoder, after MViTv2
(arXiv 2112.01526, section 4.1). In windows the same holds within each of them. Those at the bottom and the right
reach beyond the grid, and what lies there is attended like any other token, as in the released SAM.

Four ways to the same numbers:

``reference``  adds the bias to the whole score matrix, as the formula says.
``sdpa``       the bias has rank H + W, so it fits into the dot product: with one-hot rows of the key's place,
               [scale * q, q.rel_h, q.rel_w] . [k, onehot(kh), onehot(kw)] is the score above. Plain
               scaled_dot_product_attention on these longer vectors is exact and never needs the score matrix
               (arXiv 2505.12044 does this for low-rank biases in general).
``blocked``    for CPUs: the scores of a few queries at a time, to which the bias is added (``blocked_attention``).
``triton``     kernels for CUDA that read q, k and v where the layer left them (``sam_ds_kernels``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sam_ds.ops.blocked_attention import blocked_attention
from sam_ds.ops.choice import by_kernels, choose, forced

IMPLEMENTATIONS = ("auto", "reference", "sdpa", "blocked", "triton")

# Up to this many tokens the score matrix stays in a CPU's cache, and writing it out costs less than the longer
# vectors do (measured forward and backward, AMX and AVX-512, windows of 64 and grids of 1,024).
_SMALL_ON_CPU = 256


def rel_pos_attention(
    qkv: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    pad: Tensor | None = None,
    window: int = 0,
    implementation: str = "auto",
) -> Tensor:
    """Attend over a grid with decomposed relative positions.

    Args:
        qkv: [B, H, W, 3, heads, d], the output of the layer that makes q, k and v.
        rel_h, rel_w: tables [2 * span - 1, d] each, span being the window's side, or H and W without windows; row i is
            the offset i - (span - 1) from key to query.
        pad: [3, heads, d], what that layer gives for a token beyond the grid; windows need it.
        window: tokens along a window's side; 0: attend over the whole grid.
        implementation: ``reference``, ``sdpa``, ``blocked``, ``triton``, or ``auto``: the fastest one here that takes
            these inputs.

    Returns:
        [B, H, W, heads, d].

    Raises:
        ValueError: an unknown implementation, inputs that do not fit together, or that the kernels do not take when
            they are asked for.
    """
    spans = (window, window) if window else (qkv.shape[1], qkv.shape[2])
    if (rel_h.shape[0], rel_w.shape[0]) != (2 * spans[0] - 1, 2 * spans[1] - 1):
        raise ValueError(
            f"a grid of {spans[0]}x{spans[1]} needs tables of {2 * spans[0] - 1} and {2 * spans[1] - 1} rows, "
            f"not {rel_h.shape[0]} and {rel_w.shape[0]}"
        )
    if window and (pad is None or pad.shape != qkv.shape[3:]):
        raise ValueError(f"windows need a pad token {list(qkv.shape[3:])}, not {None if pad is None else [*pad.shape]}")
    wanted = forced("rel_pos_attention", implementation, IMPLEMENTATIONS, qkv.device)
    found = by_kernels("rel_pos_attention", wanted, qkv.device, lambda: _triton(qkv, rel_h, rel_w, pad, window))
    if found is not None:
        return found
    if wanted == "auto":
        wanted = choose("rel_pos_attention", _fastest(qkv, spans[0] * spans[1]))
    attend = {"reference": _reference, "sdpa": _augmented, "blocked": blocked_attention}[wanted]
    if window == 0:
        return attend_grids(attend, qkv, rel_h, rel_w)
    assert pad is not None
    windows, rows, columns = split_windows(qkv, pad, window)
    return join_windows(attend_grids(attend, windows, rel_h, rel_w), rows, columns, qkv.shape[1], qkv.shape[2])


def _fastest(qkv: Tensor, tokens: int) -> str:
    """Without kernels."""
    if qkv.device.type != "cpu":
        return "sdpa"
    if tokens <= _SMALL_ON_CPU:
        return "reference"
    # Products of 16-bit numbers are so cheap on a CPU that has them that the longer vectors cost less than the tiles.
    return "sdpa" if qkv.dtype in (torch.bfloat16, torch.float16) else "blocked"


def _triton(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, pad: Tensor | None, window: int) -> Tensor:
    from sam_ds_kernels import rel_pos_attention_global, rel_pos_attention_window

    qkv = qkv.contiguous()
    if window == 0:
        return rel_pos_attention_global(qkv, rel_h, rel_w)
    assert pad is not None
    return rel_pos_attention_window(qkv, pad.contiguous(), rel_h, rel_w, window)


def split_windows(qkv: Tensor, pad: Tensor, size: int) -> tuple[Tensor, int, int]:
    """[B, H, W, ...] to [B * windows, size, size, ...], and the rows and columns of windows."""
    batch, height, width = qkv.shape[:3]
    below, beside = -height % size, -width % size
    if beside:
        qkv = torch.cat([qkv, pad.expand(batch, height, beside, *pad.shape)], 2)
    if below:
        qkv = torch.cat([qkv, pad.expand(batch, below, width + beside, *pad.shape)], 1)
    rows, columns = (height + below) // size, (width + beside) // size
    windows = qkv.unflatten(2, (columns, size)).unflatten(1, (rows, size))  # [B, rows, size, columns, size, ...]
    return windows.transpose(2, 3).flatten(0, 2), rows, columns


def join_windows(windows: Tensor, rows: int, columns: int, height: int, width: int) -> Tensor:
    """Undo ``split_windows``; what lies beyond the grid is cut off."""
    x = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3)  # [B, rows, size, columns, size, ...]
    return x.flatten(3, 4).flatten(1, 2)[:, :height, :width]


def attend_grids(attend: Callable[..., Tensor], qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """Attend over whole grids [B, H, W, 3, heads, d], with heads in front of tokens in between."""
    grid = (qkv.shape[1], qkv.shape[2])
    q, k, v = qkv.flatten(1, 2).permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, d]
    bias_h, bias_w = position_scores(q, rel_h, rel_w, grid)
    out = attend(q, k, v, bias_h, bias_w)
    return out.transpose(1, 2).unflatten(1, grid)


def position_scores(q: Tensor, rel_h: Tensor, rel_w: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The two position terms: [B, heads, H, W, H] by key row and [B, heads, H, W, W] by key column."""
    by_place = q.unflatten(2, grid)  # [B, heads, H, W, d]
    return (
        torch.einsum("bnhwd,hdk->bnhwk", by_place, _offsets(rel_h, grid[0])),
        torch.einsum("bnhwd,wdk->bnhwk", by_place, _offsets(rel_w, grid[1])),
    )


def _offsets(table: Tensor, size: int) -> Tensor:
    """[size (query), d, size (key)]: the table's row of every query-key offset.

    Sliding windows over the reversed table instead of an index: a view, and its backward needs no atomics.
    """
    return table.flip(0).unfold(0, size, 1).flip(0)


def _reference(q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [B, heads, N, N]
    bias = bias_h.unsqueeze(-1) + bias_w.unsqueeze(-2)  # [B, heads, H, W, H, W]
    return (scores + bias.flatten(4).flatten(2, 3)).softmax(-1) @ v


def _augmented(q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    batch, heads, num_tokens, head_dim = q.shape
    height, width = bias_h.shape[-1], bias_w.shape[-1]
    places = torch.arange(num_tokens, device=q.device)
    rows = F.one_hot(places // width, height)  # [N, H]
    columns = F.one_hot(places % width, width)  # [N, W]
    onehot = torch.cat([rows, columns], dim=-1).to(q.dtype).expand(batch, heads, -1, -1)
    q_long = torch.cat([q * head_dim**-0.5, bias_h.flatten(2, 3), bias_w.flatten(2, 3)], dim=-1)
    k_long = torch.cat([k, onehot], dim=-1)  # [B, heads, N, d + H + W]
    if q.device.type == "cpu":
        # The CPU's fused kernel wants all vectors of one length; without it the score matrix would be written.
        v = F.pad(v, (0, height + width))
    return F.scaled_dot_product_attention(q_long, k_long, v, scale=1.0)[..., :head_dim]
