"""The mask loss: values and gradients against float64 on the upsampled grid, and the same bits twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

pytest.importorskip("triton", reason="triton is not installed")

from sam_ds_kernels import definitions, mask_loss

GPU = torch.cuda.is_available()
# Objects, masks, rows and columns of the logits, and how much finer the truth is. Strips are 16 rows.
SHAPES = [(3, 1, 6, 5, 4), (1, 1, 17, 4, 4), (2, 1, 9, 17, 1), (1, 2, 18, 5, 2), (1, 1, 1, 1, 4), (1, 1, 2, 3, 8)]
if GPU:
    SHAPES += [(8, 3, 256, 256, 4), (4, 1, 200, 131, 4), (2, 3, 256, 256, 1), (1, 1, 40, 1024, 4)]


def make(objects: int, masks: int, height: int, width: int, factor: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    logits = (torch.randn(objects, masks, height, width) * 3).double()
    truth = torch.rand(objects, factor * height, factor * width) > 0.6
    valid = torch.tensor([[factor * height, factor * width], [factor * height - 3, 1], [2, factor * width - 2]])
    return logits, truth, valid.repeat(-(-objects // 3), 1)[:objects].to(torch.int32)


def check(logits: Tensor, truth: Tensor, valid: Tensor, alpha: float, gamma: float, device: str) -> None:
    logits, truth, valid = (x.to(device) for x in (logits, truth, valid))
    exact = logits.clone().requires_grad_()
    focal, dice, iou = definitions.mask_loss(exact, truth, valid, alpha, gamma)
    weights = torch.randn(2, *focal.shape, dtype=torch.float64).to(device)
    (expected_grad,) = torch.autograd.grad((focal * weights[0] + dice * weights[1]).sum(), exact)
    runs = []
    for _ in range(2):
        given = logits.float().requires_grad_()
        out = mask_loss(given, truth, valid, alpha, gamma)
        total = (out[0] * weights[0].to(out[0]) + out[1] * weights[1].to(out[1])).sum()
        runs.append([*out, *torch.autograd.grad(total, given)])
    for result, again in zip(*runs, strict=True):
        assert torch.equal(result, again), "two runs differ"
    for result, right in zip(runs[0], (focal, dice, iou, expected_grad), strict=True):
        # Sums of up to a million terms, each rounded to float32, in an order of their own.
        assert_close(result.double(), right, rtol=1e-4, atol=2e-6 * float(right.detach().abs().max()) + 1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape: tuple[int, ...], device: str) -> None:
    check(*make(*shape), 0.25, 2.0, device)


@pytest.mark.parametrize(("alpha", "gamma"), [(-1.0, 1.5), (0.8, 0.0)])
def test_other_weights(alpha: float, gamma: float, device: str) -> None:
    check(*make(1, 2, 4, 5, 2), alpha, gamma, device)


@pytest.mark.parametrize("fill", [False, True])
def test_all_empty_and_all_full(fill: bool, device: str) -> None:
    logits, truth, valid = make(3, 1, 5, 4, 4)
    check(logits, torch.full_like(truth, fill), valid, 0.25, 2.0, device)


@pytest.mark.parametrize("value", [-1e4, 1e4, 0.0])
def test_extreme_logits(value: float, device: str) -> None:
    logits, truth, valid = make(2, 1, 5, 4, 4)
    logits = torch.full_like(logits, value)
    check(logits, truth, valid, 0.25, 2.0, device)


def test_nothing_valid_costs_nothing(device: str) -> None:
    logits, truth, valid = make(1, 1, 4, 4, 4)
    given = logits.float().to(device).requires_grad_()
    focal, dice, iou = mask_loss(given, truth.to(device), torch.zeros_like(valid).to(device))
    assert [float(part.detach()) for part in (focal, dice, iou)] == [0.0, 0.0, 1.0]
    assert not torch.autograd.grad((focal + dice).sum(), given)[0].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_logits(dtype: torch.dtype, device: str) -> None:
    """They are read as they are and computed with in float32."""
    logits, truth, valid = make(1, 2, 3, 4, 4)
    given = logits.to(device, dtype).requires_grad_()
    wide = given.detach().float().requires_grad_()
    losses = [mask_loss(x, truth.to(device), valid.to(device)) for x in (given, wide)]
    assert_close(losses[0], losses[1], rtol=0, atol=0)
    grads = [torch.autograd.grad((x[0] + x[1]).sum(), y)[0] for x, y in zip(losses, (given, wide), strict=True)]
    assert grads[0].dtype == dtype
    step = 0 if GPU or dtype == torch.float16 else torch.finfo(dtype).eps  # the interpreter cuts bfloat16 off
    assert_close(grads[0], grads[1].to(dtype), rtol=step, atol=0)


def test_no_objects(device: str) -> None:
    logits = torch.zeros(0, 3, 4, 4, device=device)
    truth, valid = torch.zeros(0, 16, 16, dtype=torch.bool, device=device), torch.zeros(0, 2, dtype=torch.int32)
    assert all(part.shape == (0, 3) for part in mask_loss(logits, truth, valid.to(device)))


def test_compiles_as_an_op(device: str) -> None:
    logits, truth, valid = make(2, 1, 4, 4, 4)
    arguments = (logits.float().to(device).requires_grad_(), truth.to(device), valid.to(device), 0.25, 2.0)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.sam_ds.mask_loss, arguments, test_utils=checks)


def test_bad_input_is_named(device: str) -> None:
    logits, truth, valid = make(2, 1, 4, 4, 4)
    logits, truth, valid = logits.float().to(device), truth.to(device), valid.to(device)
    for wrong, message in [
        ((logits.double(), truth, valid), "not .*float64"),
        ((logits, truth[:, :12], valid), "not .2, 12, 16. "),
        ((logits, truth.float(), valid), "bool or uint8 .* not .*float32"),
        ((logits, truth, valid.float()), "valid must be integers"),
        ((logits.transpose(2, 3), truth, valid), "logits must be contiguous"),
        ((logits.new_zeros(2, 1, 1, 2000), truth, valid), "1 to 1024 columns wide, not 2000"),
    ]:
        with pytest.raises(ValueError, match=message):
            mask_loss(*wrong)
