"""Attention between a few tokens and the many cells of a picture, with the projections moved to the tokens.

The mask decoder's two cross-attentions, after the algebra in ``modeling.sam.two_way_transformer``: M = heads * T
rows of queries, keys or values stand against N cells, M is a few dozen and N thousands. Both use the cells twice,
as they are and with their positions added.

Memory traffic over [O, N, D] is what costs, so the fused forms make as few tensors of that size as can be: the
positions are a product of their own (x . (c + p) = x . c + x . p) and never added to the cells, and the gradients
of both uses of the cells go into one tensor, where autograd would make one each and add them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IMPLEMENTATIONS = ("auto", "reference", "fused")


def gather_cells(queries: Tensor, cells: Tensor, positions: Tensor, implementation: str = "auto") -> Tensor:
    """softmax over the cells of queries . (cells + positions), times cells.

    Args:
        queries: [O, M, D]; cells: [O, N, D].
        positions: [N, D], constants: they get no gradient.
        implementation: ``reference`` (autograd's backward), ``fused`` or ``auto``, which is ``fused``.

    Returns:
        [O, M, D].
    """
    if _is_reference(implementation):
        return (queries @ (cells + positions).transpose(1, 2)).softmax(-1) @ cells
    dtype = _compute_type(cells)
    with torch.autocast(cells.device.type, enabled=False):
        return _GatherCells.apply(queries.to(dtype), cells.to(dtype), positions.to(dtype))  # type: ignore[no-untyped-call]


def update_cells(
    cells: Tensor,
    positions: Tensor,
    keys: Tensor,
    bias: Tensor,
    values: Tensor,
    num_heads: int,
    implementation: str = "auto",
) -> Tensor:
    """cells + sum over heads of (softmax over a head's tokens of keys . (cells + positions) + bias) times values.

    Args:
        cells: [O, N, D].
        positions: [N, D], constants: they get no gradient.
        keys, values: [O, M, D], M = num_heads * tokens, head by head.
        bias: [O, M, 1], minus infinity for a token that is not there.
        implementation: ``reference`` (autograd's backward), ``fused`` or ``auto``, which is ``fused``.

    Returns:
        [O, N, D].
    """
    if _is_reference(implementation):
        scores = keys @ (cells + positions).transpose(1, 2) + bias
        shares = scores.unflatten(1, (num_heads, -1)).softmax(2).flatten(1, 2)
        return cells + shares.transpose(1, 2) @ values
    dtype = _compute_type(cells)
    with torch.autocast(cells.device.type, enabled=False):
        inputs = (x.to(dtype) for x in (cells, positions, keys, bias, values))
        return _UpdateCells.apply(*inputs, num_heads)  # type: ignore[no-untyped-call]


class _GatherCells(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, cells: Tensor, positions: Tensor) -> Tensor:
        scores = (queries @ positions.t()).baddbmm_(queries, cells.transpose(1, 2))  # [O, M, N]
        shares = scores.softmax(-1)
        ctx.save_for_backward(queries, cells, positions, shares)
        return shares @ cells

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        queries, cells, positions, shares = ctx.saved_tensors
        d_scores = _softmax_backward(grad @ cells.transpose(1, 2), shares, -1)
        d_queries = d_scores @ cells + d_scores @ positions
        d_cells = shares.transpose(1, 2) @ grad
        d_cells.baddbmm_(d_scores.transpose(1, 2), queries)
        return d_queries, d_cells, None


class _UpdateCells(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cells: Tensor, positions: Tensor, keys: Tensor, bias: Tensor, values: Tensor, num_heads: int
    ) -> Tensor:
        scores = torch.addmm(bias.flatten(0, 1), keys.flatten(0, 1), positions.t()).unflatten(0, keys.shape[:2])
        scores.baddbmm_(keys, cells.transpose(1, 2))  # [O, M, N]
        shares = scores.unflatten(1, (num_heads, -1)).softmax(2)  # [O, heads, T, N]
        ctx.save_for_backward(cells, positions, keys, values, shares)
        return torch.baddbmm(cells, shares.flatten(1, 2).transpose(1, 2), values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor, Tensor, None]:
        cells, positions, keys, values, shares = ctx.saved_tensors
        d_shares = (values @ grad.transpose(1, 2)).view_as(shares)
        d_scores = _softmax_backward(d_shares, shares, 2).flatten(1, 2)  # [O, M, N]
        d_keys = d_scores @ cells + d_scores @ positions
        d_values = shares.flatten(1, 2) @ grad
        d_cells = torch.baddbmm(grad, d_scores.transpose(1, 2), keys)
        return d_cells, None, d_keys, d_scores.sum(-1, keepdim=True), d_values, None


def _softmax_backward(grad: Tensor, out: Tensor, dim: int) -> Tensor:
    """out * (grad - sum(out * grad)) in one pass."""
    result: Tensor = torch.ops.aten._softmax_backward_data(grad, out, dim, out.dtype)
    return result


def _is_reference(implementation: str) -> bool:
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"no implementation {implementation!r} of cell attention; there are {IMPLEMENTATIONS}")
    return implementation == "reference"


def _compute_type(cells: Tensor) -> torch.dtype:
    """The type matrix products would run in here, also when autocast is on."""
    device = cells.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else cells.dtype
