"""Every implementation of rel_pos_attention gives the formula's numbers and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sam_ds.config.errors import UserError
from sam_ds.ops import choice, rel_pos_attention

GRIDS = [(4, 4), (3, 5), (1, 2), (18, 17)]  # the last is too large for the small-grid choice on a CPU
WINDOWS = [((4, 4), 2), ((5, 7), 3), ((2, 3), 4)]  # whole ones, beyond both edges, larger than the grid


def make_inputs(grid: tuple[int, int], dtype: torch.dtype, window: int = 0) -> list[Tensor]:
    """qkv, tables, pad token."""
    torch.manual_seed(0)
    spans = (window, window) if window else grid
    shapes = [(2, *grid, 3, 3, 8), (2 * spans[0] - 1, 8), (2 * spans[1] - 1, 8), (3, 3, 8)]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def by_the_formula(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, pad: Tensor, window: int = 0) -> Tensor:
    """Score by score, as the docstring says."""
    height, width = qkv.shape[1:3]
    side_h, side_w = (window, window) if window else (height, width)
    out = torch.empty_like(qkv[:, :, :, 0])
    for qy in range(height):
        for qx in range(width):
            top, left = qy // side_h * side_h, qx // side_w * side_w
            scores, values = [], []
            for ky in range(top, top + side_h):
                for kx in range(left, left + side_w):
                    key = qkv[:, ky, kx] if ky < height and kx < width else pad.expand(len(qkv), *pad.shape)
                    q = qkv[:, qy, qx, 0]  # [B, heads, d]
                    position = rel_h[qy - ky + side_h - 1] + rel_w[qx - kx + side_w - 1]
                    scores.append((q * (key[:, 1] * q.shape[-1] ** -0.5 + position)).sum(-1))
                    values.append(key[:, 2])
            out[:, qy, qx] = (torch.stack(scores).softmax(0).unsqueeze(-1) * torch.stack(values)).sum(0)
    return out


@pytest.mark.parametrize("implementation", ["reference", "sdpa", "blocked"])
@pytest.mark.parametrize(("grid", "window"), [*((grid, 0) for grid in GRIDS[:3]), *WINDOWS])
def test_the_formula(grid: tuple[int, int], window: int, implementation: str) -> None:
    inputs = make_inputs(grid, torch.float64, window)
    assert_close(rel_pos_attention(*inputs, window, implementation), by_the_formula(*inputs, window))


@pytest.mark.parametrize("implementation", ["auto", "sdpa", "blocked"])
@pytest.mark.parametrize(("grid", "window"), [*((grid, 0) for grid in GRIDS), *WINDOWS])
def test_gradients_equal_the_reference(grid: tuple[int, int], window: int, implementation: str) -> None:
    inputs = make_inputs(grid, torch.float64, window)
    wanted = inputs if window else inputs[:3]
    out, expected = (rel_pos_attention(*inputs, window, name) for name in (implementation, "reference"))
    weight = torch.randn_like(out)
    assert_close(out, expected)
    assert_close(
        torch.autograd.grad((out * weight).sum(), wanted, allow_unused=True, materialize_grads=True),
        torch.autograd.grad((expected * weight).sum(), wanted, allow_unused=True, materialize_grads=True),
    )


def test_blocks_of_queries_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs((3, 5), torch.float64)[:3]
    whole = rel_pos_attention(*inputs, implementation="blocked")
    weight = torch.randn_like(whole)
    expected = torch.autograd.grad((whole * weight).sum(), inputs)
    # Blocks of 4 queries, the last of 3.
    monkeypatch.setattr("sam_ds.ops.blocked_attention._TILE", 4 * 15)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    out = rel_pos_attention(*inputs, implementation="blocked")
    assert_close(out, whole)
    assert_close(torch.autograd.grad((out * weight).sum(), inputs), expected)


@pytest.mark.parametrize("implementation", ["auto", "reference", "sdpa", "blocked"])
def test_bfloat16_keeps_its_type(implementation: str) -> None:
    inputs = make_inputs((4, 4), torch.float32)
    out = rel_pos_attention(*(x.bfloat16() for x in inputs), 0, implementation)
    assert out.dtype == torch.bfloat16
    # Scores reach about 10, where bfloat16 steps are 2**-5: that much error goes into the exponent.
    assert_close(out.float(), rel_pos_attention(*inputs), rtol=0.1, atol=0.1)


def test_bad_input_is_named() -> None:
    qkv, rel_h, rel_w, _ = make_inputs((4, 4), torch.float32)
    with pytest.raises(ValueError, match="9 and 7 rows, not 7 and 7"):
        rel_pos_attention(qkv.new_zeros(1, 5, 4, 3, 3, 8), rel_h, rel_w)
    with pytest.raises(ValueError, match="no implementation 'fast'"):
        rel_pos_attention(qkv, rel_h, rel_w, implementation="fast")
    with pytest.raises(ValueError, match=r"need a pad token \[3, 3, 8\], not None"):
        rel_pos_attention(qkv, rel_h, rel_w, window=4)


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs((3, 3), torch.float32)
    monkeypatch.setenv(choice.VARIABLE, "mask_loss=reference, rel_pos_attention=sdpa")
    assert torch.equal(rel_pos_attention(*inputs, implementation="reference"), rel_pos_attention(*inputs, 0, "sdpa"))
    monkeypatch.setenv(choice.VARIABLE, "rel_pos_attention=fast")
    with pytest.raises(UserError, match="SAM_DS_OPS: no implementation 'fast'"):
        rel_pos_attention(*inputs)
    monkeypatch.setenv(choice.VARIABLE, "mask_los=fused")
    with pytest.raises(UserError, match="no op 'mask_los': did you mean mask_loss"):
        rel_pos_attention(*inputs)


def test_triton_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs((3, 3), torch.float32)
    monkeypatch.setattr(choice, "TRITON", False)
    with pytest.raises(UserError, match="triton is not installed"):
        rel_pos_attention(*inputs, implementation="triton")
    monkeypatch.setattr(choice, "TRITON", True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match="run on CUDA, not on cpu; use auto"):
        rel_pos_attention(*inputs, implementation="triton")
