"""Left to themselves the ops pass on to plain torch what the kernels refuse; asked for the kernels they say why not."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

pytest.importorskip("triton", reason="triton is not installed")

from sam_ds.ops import choice, rasterize, rel_pos_attention
from sam_ds.ops.mask_loss import mask_loss
from sam_ds.types import MaskRuns
from sam_ds_kernels import checks
from sam_ds_kernels.launch import recording
from sam_ds_kernels.mask_loss import run_backward, run_forward
from sam_ds_kernels.rasterize_runs import run


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "kernels_run_on", lambda device: True)
    monkeypatch.setattr(choice, "_REFUSED", set())


def attention(dtype: torch.dtype, window: int, device: str) -> Callable[[str], object]:
    torch.manual_seed(0)
    rows = 2 * (window or 4) - 1
    shapes = ((1, 4, 4, 3, 2, 8), (rows, 8), (rows, 8), (3, 2, 8))
    inputs = [torch.randn(shape, device=device, dtype=dtype) for shape in shapes]
    return lambda name: rel_pos_attention(*inputs, window, name)


def losses(logits: Tensor) -> Callable[[str], object]:
    truth = torch.zeros(1, 4, 4 * logits.shape[-1], dtype=torch.bool, device=logits.device)
    valid = torch.tensor([[4, 4]], device=logits.device)
    return lambda name: mask_loss(logits, truth, valid, implementation=name)


def test_refused(device: str, caplog: pytest.LogCaptureFixture) -> None:
    double, wide = torch.randn(1, 1, 1, 4, device=device).double(), torch.randn(1, 1, 1, 1025, device=device)
    for op, call, reason in [
        ("rel_pos_attention", attention(torch.float64, 0, device), "not torch.float64"),
        ("rel_pos_attention", attention(torch.float64, 2, device), "not torch.float64"),
        ("rel_pos_attention", attention(torch.float32, 33, device), "1 to 32 tokens, not 33"),
        ("mask_loss", losses(double), "not .* torch.float64"),
        ("mask_loss", losses(wide), "1 to 1024 columns wide, not 1025"),
    ]:
        caplog.clear()
        choice._REFUSED.clear()
        with caplog.at_level(logging.WARNING):
            found = [call("auto") for _ in range(2)]
        (message,) = (record.getMessage() for record in caplog.records)
        assert message.startswith(f"{op}: not the kernels, which refuse: ")
        with pytest.raises(ValueError, match=reason) as refusal:
            call("triton")
        assert message.endswith(str(refusal.value))
        assert_close(found, [call("reference")] * 2)


def test_too_many_for_a_launch(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LARGEST_AXIS", 7)  # of four windows and two heads
    call = attention(torch.float32, 2, device)
    with pytest.raises(ValueError, match="at most 7, not 8: use fewer pictures"):
        call("triton")
    assert_close(call("auto"), call("reference"))


def test_too_large_to_count(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([2, 6], dtype=torch.int32, device=device)
    runs = MaskRuns(ends, torch.tensor([0, 2], device=device), torch.tensor([[2, 3]], device=device))
    matrices = torch.eye(2, 3, device=device)[None]
    drawn = rasterize(runs, matrices, (2, 3), "triton")
    monkeypatch.setattr(checks, "LARGEST_INDEX", 10)
    for call, reason in [
        (lambda name: rasterize(runs, matrices, (2, 3), name), "pixels of a mask must be at most 10"),
        (attention(torch.float32, 0, device), "values of a picture's qkv must be at most 10, not 768"),
        (losses(torch.zeros(1, 1, 1, 4, device=device)), "pixels of a mask must be at most 10, not 64"),
    ]:
        with pytest.raises(ValueError, match=reason):
            call("triton")
        assert_close(call("auto"), call("reference"))
    assert torch.equal(rasterize(runs, matrices, (2, 3), "auto"), drawn)


def test_taken(device: str, caplog: pytest.LogCaptureFixture) -> None:
    call = attention(torch.float32, 2, device)
    assert torch.equal(call("auto"), call("triton"))
    assert not choice._REFUSED
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_any_number_of_masks() -> None:
    """CUDA takes 65,535 programs along a launch's second and third axis, 2^31 - 1 along the first."""
    count = 70_000
    logits, truth = (
        torch.empty(count, 1, 2, 2, device="meta"),
        torch.empty(count, 8, 8, dtype=torch.bool, device="meta"),
    )
    valid, offsets = (torch.empty(shape, dtype=torch.int64, device="meta") for shape in ((count, 2), (count + 1,)))
    matrices = torch.empty(count, 2, 3, device="meta")
    with recording("sm80") as launches:
        focal, dice, _, *kept = run_forward(logits, truth, valid, 0.25, 2.0)
        run_backward(focal, dice, logits, truth, valid, *kept, 0.25, 2.0)
        run(offsets, offsets, valid, matrices, 40, 40)
    assert [launch.grid for launch in launches] == [(count,), (count,), (2 * count,)]
