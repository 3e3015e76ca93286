"""The fused backward of the decoder's cross-attentions gives autograd's gradients of the plain formula."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sam_ds.ops import gather_cells, update_cells

OBJECTS, HEADS, TOKENS, CELLS, DIM = 3, 2, 5, 7, 8


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make_gather(dtype: torch.dtype = torch.float64):
    """The op without its implementation, and its differentiable inputs."""
    rows = HEADS * TOKENS
    inputs = [draw(OBJECTS, rows, DIM, seed=1, dtype=dtype), draw(OBJECTS, CELLS, DIM, seed=2, dtype=dtype)]
    return partial(gather_cells, positions=draw(CELLS, DIM, seed=3, dtype=dtype)), inputs


def make_update(dtype: torch.dtype = torch.float64):
    rows = HEADS * TOKENS
    cells, keys, values = (draw(OBJECTS, n, DIM, seed=n, dtype=dtype) for n in (CELLS, rows, rows))
    bias = draw(OBJECTS, HEADS, TOKENS, 1, seed=4, dtype=dtype)
    bias[0, :, -2:] = float("-inf")  # two tokens that are not there
    positions = draw(CELLS, DIM, seed=3, dtype=dtype)

    def op(cells: Tensor, keys: Tensor, bias: Tensor, values: Tensor, implementation: str = "auto") -> Tensor:
        return update_cells(cells, positions, keys, bias, values, HEADS, implementation)

    return op, [cells, keys, bias.flatten(1, 2), values]


@pytest.mark.parametrize("make", [make_gather, make_update])
def test_fused_equals_reference(make) -> None:
    op, inputs = make()
    inputs = [x.requires_grad_() for x in inputs]
    fused, expected = op(*inputs, implementation="fused"), op(*inputs, implementation="reference")
    weight = draw(*expected.shape, seed=9)
    assert_close(fused, expected)
    assert_close(
        torch.autograd.grad((fused * weight).sum(), inputs), torch.autograd.grad((expected * weight).sum(), inputs)
    )


@pytest.mark.parametrize("make", [make_gather, make_update])
def test_autocast_runs_in_its_type_both_ways(make) -> None:
    op, inputs = make(torch.float32)
    inputs = [x.requires_grad_() for x in inputs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = op(*inputs)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    expected = op(*(x.detach() for x in inputs))
    assert_close(out.float(), expected, rtol=0.05, atol=0.05)  # a bfloat16 step is 2**-8, summed over a few terms
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in inputs)


def test_a_missing_token_gets_no_gradient() -> None:
    op, inputs = make_update()
    inputs = [x.requires_grad_() for x in inputs]
    op(*inputs).square().sum().backward()
    for x in (inputs[1], inputs[3]):  # keys and values
        assert x.grad.unflatten(1, (HEADS, TOKENS))[0, :, -2:].abs().max() == 0
        assert x.grad.isfinite().all()


def test_an_unknown_implementation_is_named() -> None:
    op, inputs = make_gather()
    with pytest.raises(ValueError, match="no implementation 'fast'"):
        op(*inputs, implementation="fast")
