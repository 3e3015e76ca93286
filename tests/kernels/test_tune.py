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
    assert table["mask_loss_forward"]["16"] in [{"rows": 4, "num_warps": 1}, {"rows": 4, "num_warps": 2}]
    assert table["rel_pos_attention_window_backward_keys"]["16"]["block_m"] == 32
    assert table["rel_pos_attention_global_forward"] == shipped["rel_pos_attention_global_forward"]
    assert list(map(int, table["mask_loss_forward"])) == [16, 64, 128, 256, 1024]


def test_wrong_numbers_are_never_the_fastest() -> None:
    op = tune.mask_loss_op(8)
    wrong = dataclasses.replace(op, definition=lambda x: tuple(1.5 * y for y in op.definition(x)))
    results = list(tune.tune(wrong, limit=1))
    assert [kernel for kernel, *_ in results] == list(op.kernels)
    for _, _, ms, why in results:
        assert ms is None and why.startswith("wrong: largest error 0.3")


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
