"""Every implementation of rel_pos_attention gives the formula's numbers and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sam_ds.ops import rel_pos_attention

GRIDS = [(4, 4), (3, 5), (1, 2), (18, 17)]  # the last is too large for the small-grid choice on a CPU


def make_inputs(grid: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    tokens = grid[0] * grid[1]
    shapes = [(2, 3, tokens, 8)] * 3 + [(2 * grid[0] - 1, 8), (2 * grid[1] - 1, 8)]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def by_the_formula(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, grid: tuple[int, int]) -> Tensor:
    """Score by score, as the docstring says."""
    height, width = grid
    places = [(y, x) for y in range(height) for x in range(width)]
    position = torch.stack(
        [
            torch.stack([q[:, :, i] @ (rel_h[qy - ky + height - 1] + rel_w[qx - kx + width - 1]) for ky, kx in places])
            for i, (qy, qx) in enumerate(places)
        ]
    ).permute(2, 3, 0, 1)
    return ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5 + position).softmax(-1) @ v


@pytest.mark.parametrize("implementation", ["reference", "sdpa"])
@pytest.mark.parametrize("grid", GRIDS[:3])
def test_the_formula(grid: tuple[int, int], implementation: str) -> None:
    inputs = make_inputs(grid, torch.float64)
    assert_close(rel_pos_attention(*inputs, grid, implementation), by_the_formula(*inputs, grid))


@pytest.mark.parametrize("implementation", ["auto", "sdpa"])
@pytest.mark.parametrize("grid", GRIDS)
def test_gradients_equal_the_reference(grid: tuple[int, int], implementation: str) -> None:
    inputs = make_inputs(grid, torch.float64)
    out, expected = rel_pos_attention(*inputs, grid, implementation), rel_pos_attention(*inputs, grid, "reference")
    weight = torch.randn_like(out)
    assert_close(out, expected)
    assert_close(
        torch.autograd.grad((out * weight).sum(), inputs), torch.autograd.grad((expected * weight).sum(), inputs)
    )


@pytest.mark.parametrize("implementation", ["auto", "reference", "sdpa"])
def test_bfloat16_keeps_its_type(implementation: str) -> None:
    grid = (4, 4)
    inputs = make_inputs(grid, torch.float32)
    out = rel_pos_attention(*(x.bfloat16() for x in inputs), grid, implementation)
    assert out.dtype == torch.bfloat16
    # Scores reach about 10, where bfloat16 steps are 2**-5: that much error goes into the exponent.
    assert_close(out.float(), rel_pos_attention(*inputs, grid), rtol=0.1, atol=0.1)


def test_bad_input_is_named() -> None:
    inputs = make_inputs((4, 4), torch.float32)
    with pytest.raises(ValueError, match="9 and 7 rows, not 7 and 7"):
        rel_pos_attention(*inputs, (5, 4))
    with pytest.raises(ValueError, match="no implementation 'fast'"):
        rel_pos_attention(*inputs, (4, 4), "fast")
