"""Attention with relative positions: outputs and all gradients against float64, and the same bits twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

pytest.importorskip("triton", reason="triton is not installed")

from sam_ds.ops import rel_pos_attention
from sam_ds_kernels import configs, definitions, rel_pos_attention_global, rel_pos_attention_window

# A unit in the last place of the type, times what adds up on the way: an output is a mean of values, a gradient a sum
# over tens of tokens, a table's gradient one over hundreds, and 16-bit inputs of a product round before it.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
GPU = torch.cuda.is_available()
DTYPES = list(TOLERANCE)

# Grid, heads, channels of a head. Tiles end within the grid and beyond it, along both axes.
GRIDS = [((5, 7), 2, 32), ((4, 16), 1, 80), ((3, 40), 1, 16), ((1, 1), 1, 8), ((9, 4), 3, 64), ((2, 20), 1, 104)]
# Grid, heads, channels, window: windows that fit, that reach beyond both edges, larger than the grid.
WINDOWS = [
    ((8, 8), 2, 16, 4),
    ((7, 9), 2, 16, 4),
    ((15, 14), 1, 80, 14),
    ((5, 5), 1, 40, 7),
    ((6, 3), 1, 64, 5),
    ((2, 3), 1, 32, 1),
]
if GPU:
    GRIDS += [
        ((64, 64), 2, 64),
        ((64, 64), 2, 80),
        ((50, 33), 2, 128),
        ((96, 20), 1, 256),
        ((14, 130), 1, 104),
        ((1, 130), 1, 64),
        ((2, 70), 1, 80),
    ]
    WINDOWS += [((64, 64), 2, 64, 14), ((64, 64), 2, 80, 14), ((33, 70), 1, 104, 16), ((64, 64), 1, 128, 8)]


def make(grid: tuple[int, int], heads: int, head_dim: int, spans: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """qkv, pad and tables, float64, of values that ``dtype`` can hold."""
    torch.manual_seed(0)
    qkv, pad = torch.randn(2, *grid, 3, heads, head_dim), torch.randn(3, heads, head_dim)
    tables = [torch.randn(2 * span - 1, head_dim) * 0.3 for span in spans]
    return [x.to(dtype).double() for x in (qkv, pad, *tables)]


def check(
    kernel: Callable[..., Tensor], formula: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype, device: str
) -> None:
    """Outputs and gradients of ``kernel`` on ``inputs`` against those of ``formula``, and against themselves."""
    exact = [x.to(device, copy=True).requires_grad_() for x in inputs]
    expected = formula(*exact)
    weight = torch.randn_like(expected).to(dtype).double()
    expected_grads = torch.autograd.grad((expected * weight).sum(), exact)
    runs = []
    for _ in range(2):
        given = [x.to(device, dtype).requires_grad_() for x in inputs]
        out = kernel(*given)
        runs.append([out, *torch.autograd.grad((out * weight.to(out)).sum(), given)])
    for result, again, right in zip(*runs, [expected, *expected_grads], strict=True):
        assert torch.equal(result, again), "two runs differ"
        assert result.dtype == dtype
        scale = float(right.detach().abs().max().clamp(min=1.0))  # what cancels to less than 1 is of that order
        assert_close(result.double() / scale, right / scale, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("grid", "heads", "head_dim"), GRIDS)
def test_global(grid: tuple[int, int], heads: int, head_dim: int, dtype: torch.dtype, device: str) -> None:
    qkv, _, rel_h, rel_w = make(grid, heads, head_dim, grid, dtype)
    check(rel_pos_attention_global, definitions.attention, [qkv, rel_h, rel_w], dtype, device)


# SAM's own window takes the interpreter a minute.
@pytest.mark.parametrize(
    ("grid", "heads", "head_dim", "window", "dtype"),
    [(*case, dtype) for case in WINDOWS for dtype in DTYPES if GPU or case[-1] < 14 or dtype == torch.float32],
)
def test_windows(
    grid: tuple[int, int], heads: int, head_dim: int, window: int, dtype: torch.dtype, device: str
) -> None:
    inputs = make(grid, heads, head_dim, (window, window), dtype)

    def kernel(*x: Tensor) -> Tensor:
        return rel_pos_attention_window(*x, window)

    def formula(*x: Tensor) -> Tensor:
        return definitions.windowed(*x, window)

    check(kernel, formula, inputs, dtype, device)


@pytest.mark.parametrize("window", [0, 3])
def test_equal_to_the_other_implementations(window: int, device: str) -> None:
    """The oracle that does not share the formula's code: plain attention on augmented vectors."""
    spans = (window or 5, window or 7)
    results = []
    for name in ("triton", "sdpa"):
        inputs = [x.float().to(device).requires_grad_() for x in make((5, 7), 2, 16, spans, torch.float32)]
        qkv, pad, rel_h, rel_w = inputs
        out = rel_pos_attention(qkv, rel_h, rel_w, pad, window, name)
        grads = torch.autograd.grad(out.square().sum(), inputs if window else [qkv, rel_h, rel_w])
        results.append([out, *(x / x.abs().max() for x in grads)])
    assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 30.0])
def test_extreme_scores(scale: float, device: str) -> None:
    """All scores alike, and scores in the thousands, where the softmax is a choice of one key."""
    for window in (0, 4):
        qkv, pad, rel_h, rel_w = make((6, 7), 1, 16, (window or 6, window or 7), torch.float32)
        inputs = [qkv * scale, pad * scale, rel_h, rel_w]
        given = [x.float().to(device) for x in inputs]
        if window:
            out, right = rel_pos_attention_window(*given, window), definitions.windowed(*inputs, window)
        else:
            del inputs[1], given[1]
            out, right = rel_pos_attention_global(*given), definitions.attention(*inputs)
        assert_close(out.double().cpu(), right, rtol=1e-3, atol=1e-3 * max(scale, 1))


def test_compiles_as_an_op(device: str) -> None:
    """Fake shapes, schema and autograd registration, as torch itself checks them."""
    qkv, pad, rel_h, rel_w = (x.float().to(device).requires_grad_() for x in make((4, 5), 1, 16, (3, 3), torch.float32))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.sam_ds.rel_pos_attention_window, (qkv, pad, rel_h, rel_w, 3), test_utils=checks)
    qkv, _, rel_h, rel_w = (x.float().to(device).requires_grad_() for x in make((4, 5), 1, 16, (4, 5), torch.float32))
    torch.library.opcheck(torch.ops.sam_ds.rel_pos_attention_global, (qkv, rel_h, rel_w), test_utils=checks)


def test_bad_input_is_named(device: str) -> None:
    qkv, pad, rel_h, rel_w = (x.float().to(device) for x in make((4, 5), 2, 16, (4, 5), torch.float32))
    for wrong, message in [
        ((qkv[..., :4].contiguous(), rel_h[:, :4], rel_w[:, :4]), "8 to 256 channels, a multiple of 8, not 4"),
        ((qkv.double(), rel_h, rel_w), "not torch.float64"),
        ((qkv.transpose(1, 2), rel_w, rel_h), "must be contiguous"),
        ((qkv[:, :, :, :2], rel_h, rel_w), r"must be \[B, H, W, 3, heads, D\]"),
        ((qkv, rel_w, rel_h), r"rel_h must be \[7, 16\].* not \[9, 16\]"),
        ((qkv, rel_h.half(), rel_w), "rel_h must be .*float32.* not .*float16"),
    ]:
        with pytest.raises(ValueError, match=message):
            rel_pos_attention_global(*wrong)
    many = torch.zeros(1, device=device).expand(40, 64, 64, 3, 32, 16)
    with pytest.raises(ValueError, match="at most 65535, not 327680: use fewer pictures"):
        rel_pos_attention_window(many, pad, rel_h, rel_h, 4)
    with pytest.raises(ValueError, match="1 to 32 tokens, not 33"):
        rel_pos_attention_window(qkv, pad, rel_h, rel_w, 33)
    with pytest.raises(ValueError, match=r"pad must be \[3, 2, 16\]"):
        rel_pos_attention_window(qkv, pad[:2], rel_h, rel_h, 4)
    wide = torch.zeros(1, 2, 2, 3, 1, 136, device=device)
    with pytest.raises(ValueError, match="heads of float32 must have at most 128 channels in windows, not 136"):
        rel_pos_attention_window(wide, wide[0, 0, 0], wide[0, 0, 0, :, 0], wide[0, 0, 0, :, 0], 2)


def test_parts_of_a_buffer(device: str) -> None:
    """Where they begin, kernels could not read 16 bytes at once."""
    inputs = [x.float().to(device) for x in make((4, 5), 1, 16, (3, 3), torch.float32)]
    shifted = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x) for x in inputs]
    results = []
    for tensors in (inputs, shifted):
        given = [x.detach().requires_grad_() for x in tensors]
        out = rel_pos_attention_window(*given, 3)
        results.append([out, *torch.autograd.grad(out.square().sum(), given)])
    assert all(x.data_ptr() % 16 == 4 for x in shifted)
    assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.skipif(GPU, reason="all of float32 runs with them")
@pytest.mark.parametrize("window", [0, 5])
def test_the_tiles_of_float32(window: int, device: str) -> None:
    """The interpreter otherwise takes larger ones."""
    inputs = make((5, 6), 1, 24, (window or 5, window or 6), torch.float32)
    kind, dtype = "window" if window else "global", torch.float32
    with contextlib.ExitStack() as stack:
        for part in ("forward", "backward_queries", "backward_keys"):
            kernel = f"rel_pos_attention_{kind}_{part}"
            stack.enter_context(configs.trying(kernel, configs.lookup("sm80", f"{kernel}_float32", 24)))
        if window:
            kernel, formula = (partial(f, window=window) for f in (rel_pos_attention_window, definitions.windowed))
            check(kernel, formula, inputs, dtype, device)
        else:
            del inputs[1]
            check(rel_pos_attention_global, definitions.attention, inputs, dtype, device)


@pytest.mark.parametrize("window", [0, 3])
def test_the_same_when_compiled_or_recomputed(window: int, device: str) -> None:
    """Inside torch.compile the op is one node of the graph; checkpointing runs it twice and gets the same bits."""
    spans = (window or 4, window or 5)
    inputs = [x.float().to(device) for x in make((4, 5), 1, 16, spans, torch.float32)]
    if not window:
        del inputs[1]

    def layer(qkv: Tensor, *others: Tensor) -> Tensor:
        if window:
            return rel_pos_attention_window(qkv * 2, *others, window) + 1
        return rel_pos_attention_global(qkv * 2, *others) + 1

    def checkpointed(*x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(layer, *x, use_reentrant=False)

    results = []
    for function in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True), checkpointed):
        given = [x.clone().requires_grad_() for x in inputs]
        out = function(*given)
        results.append([out, *torch.autograd.grad(out.square().sum(), given)])
    for other in results[1:]:
        assert_close(other, results[0], rtol=0, atol=0)
