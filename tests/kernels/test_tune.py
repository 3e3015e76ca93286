"""Tuning: the fastest right config is written where kernels find it; a wrong one never is."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from sam_ds_kernels import configs, tune


def test_writes_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "sm80.json"
    arguments = ["--ops", "mask_loss", "window", "--sizes", "16", "--limit", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["tune", *arguments])
    tune.main()
    table, shipped = json.loads(output.read_text()), configs.load("sm80")
    assert set(table) == set(shipped)
    tried = [{"rows": rows, "num_warps": warps} for rows, warps in ((16, 1), (4, 1), (4, 2))]
    assert table["mask_loss_forward"]["16"] in tried
    assert table["rel_pos_attention_window_backward_keys"]["16"]["block_m"] in (16, 64)
    assert table["rel_pos_attention_global_forward"] == shipped["rel_pos_attention_global_forward"]
    assert list(map(int, table["mask_loss_forward"])) == [16, 64, 128, 256, 1024]


def test_wrong_numbers_are_never_the_fastest() -> None:
    op = tune.mask_loss_op(8)
    wrong = dataclasses.replace(op, definition=lambda x: tuple(1.5 * y for y in op.definition(x)))
    results = list(tune.tune(wrong, limit=0))
    assert [kernel for kernel, *_ in results] == list(op.kernels)
    for _, _, ms, why in results:
        assert ms is None and why.startswith("wrong: error 0.3")


def test_a_gradient_that_is_not_a_number_is_wrong() -> None:
    op = tune.attention_op(4, 16)
    poisoned = dataclasses.replace(op, run=lambda *x: (_spoilt(op.run(*x)[0], x[-1]),))
    for _, _, ms, why in tune.tune(poisoned, limit=0):
        assert ms is None and why == "wrong: error nan of the largest value"


def _spoilt(out: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The same values, and a last gradient of NaN."""
    return out + (table.sum() - table.sum().detach()).abs().sqrt()


def test_candidates_run_and_are_forgotten(device: str) -> None:
    op = tune.mask_loss_op(8)
    with configs.trying("mask_loss_forward", {"rows": 3, "num_warps": 1}):
        tried = op.run(*op.inputs)
        assert configs.config_for("mask_loss_forward", 8, torch.device(device))["rows"] == 3
    torch.testing.assert_close(tried, op.run(*op.inputs))
    assert configs.config_for("mask_loss_forward", 8, torch.device(device))["rows"] == 16


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_shipped_file_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tune"])
    with pytest.raises(SystemExit) as stopped:
        tune.main()
    assert stopped.value.code == 2
    assert "no CUDA device" in capsys.readouterr().err
