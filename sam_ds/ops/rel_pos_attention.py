"""Self-attention on a grid with SAM's decomposed relative positions.

For a query at (qh, qw) and a key at (kh, kw) of an H x W grid,

    score = scale * q.k + q.rel_h[qh - kh + H - 1] + q.rel_w[qw - kw + W - 1],   scale = d ** -0.5

where the two position terms take the *unscaled* query. Source: segment-anything's image encoder, after MViTv2
(arXiv 2112.01526, section 4.1).

Two ways to the same numbers:

``reference``  adds the bias to the whole score matrix, as the formula says.
``sdpa``       the bias has rank H + W, so it fits into the dot product: with one-hot rows of the key's place,
               [scale * q, q.rel_h, q.rel_w] . [k, onehot(kh), onehot(kw)] is the score above. Plain
               scaled_dot_product_attention on these longer vectors is exact and never needs the score matrix
               (arXiv 2505.12044 does this for low-rank biases in general).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IMPLEMENTATIONS = ("auto", "reference", "sdpa")

# Up to this many tokens the score matrix stays in a CPU's cache, and writing it out costs less than the longer
# vectors do (measured forward and backward, AMX and AVX-512, windows of 64 and grids of 1,024).
_SMALL_ON_CPU = 256


def rel_pos_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    grid: tuple[int, int],
    implementation: str = "auto",
) -> Tensor:
    """Attend over a grid with decomposed relative positions.

    Args:
        q, k, v: [B, heads, H * W, d], any strides.
        rel_h, rel_w: tables [2H - 1, d] and [2W - 1, d]; row i is the offset i - (H - 1) from key to query.
        grid: (H, W).
        implementation: ``reference``, ``sdpa``, or ``auto``: the faster one here.

    Returns:
        [B, heads, H * W, d].

    Raises:
        ValueError: an unknown implementation, or tables that do not fit the grid.
    """
    height, width = grid
    if rel_h.shape[0] != 2 * height - 1 or rel_w.shape[0] != 2 * width - 1:
        raise ValueError(
            f"a grid of {height}x{width} needs tables of {2 * height - 1} and {2 * width - 1} rows, "
            f"not {rel_h.shape[0]} and {rel_w.shape[0]}"
        )
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"no implementation {implementation!r} of rel_pos_attention; there are {IMPLEMENTATIONS}")
    bias_h, bias_w = _position_scores(q, rel_h, rel_w, grid)
    if implementation == "auto":
        implementation = "reference" if q.device.type == "cpu" and q.shape[2] <= _SMALL_ON_CPU else "sdpa"
    if implementation == "reference":
        return _reference(q, k, v, bias_h, bias_w)
    return _augmented(q, k, v, bias_h, bias_w)


def _position_scores(q: Tensor, rel_h: Tensor, rel_w: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
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
