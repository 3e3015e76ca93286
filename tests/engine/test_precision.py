"""A processor that is no good at bfloat16 trains in float32, and who asks for more hears of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sam_ds.cli.main import main
from sam_ds.config import deepspeed
from sam_ds.config.errors import UserError
from sam_ds.engine import precision

A_FP16 = {"train_micro_batch_size_per_gpu": 1, "fp16": {"enabled": True}}


@pytest.fixture
def old_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with products in float32 alone."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(precision, "cpu_multiplies", lambda asked: asked == "fp32")


@pytest.mark.usefixtures("old_cpu")
@pytest.mark.parametrize("stage", [2, 3])
def test_the_local_config_of_an_old_processor(stage: int) -> None:
    name = precision.local_config(stage)
    own, usual = deepspeed.load(name), deepspeed.load(f"zero{stage}_local.json")
    assert name == f"zero{stage}_local_fp32.json" and own.precision == "fp32"
    assert own.raw | {"bf16": usual.raw["bf16"]} == usual.raw  # alike in all else
    assert precision.note(own) == ""


@pytest.mark.usefixtures("old_cpu")
def test_an_old_processor_is_told_what_bf16_costs() -> None:
    said = precision.note(deepspeed.load("zero2_local.json"))
    assert "no instructions for bf16" in said and "zero2_local_fp32.json" in said and "\n" not in said
    with pytest.raises(UserError, match=r"no fp16: enable bf16 or neither, as in zero2_local_fp32\.json"):
        precision.note(deepspeed.parse(A_FP16))


def test_other_devices_have_bf16(old_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    assert precision.local_config() == "zero2_local.json"
    assert precision.note(deepspeed.load("zero2_local.json")) == precision.note(deepspeed.parse(A_FP16)) == ""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(precision, "cpu_multiplies", lambda asked: True)
    assert precision.local_config() == "zero2_local.json"
    assert precision.note(deepspeed.load("zero2_local.json")) == ""


def test_products_are_asked_of_torch() -> None:
    assert precision.cpu_multiplies("fp32")
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert precision.cpu_multiplies("bf16")
    elif torch.backends.cpu.get_cpu_capability() == "AVX2":
        assert not precision.cpu_multiplies("fp16")


@pytest.mark.usefixtures("old_cpu")
def test_check_says_it_of_a_training_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["check", "--recipe", "tiny"]) == 0
    said = capsys.readouterr()
    assert "zero2_local_fp32.json: the settings hold together" in said.out and not said.err
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}}))
    assert main(["check", "--recipe", "tiny", "--deepspeed_config", str(mine)]) == 0
    assert f"note: {mine}: this processor has no instructions for bf16" in capsys.readouterr().err
    mine.write_text(json.dumps(A_FP16))
    assert main(["check", "--recipe", "tiny", "--deepspeed_config", str(mine)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{mine}: this processor has no fp16" in line
