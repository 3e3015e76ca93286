"""Recipes with a pre-training, and model.init, on the command line: what is said before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sam_ds.cli.main import main
from sam_ds.config.schema import MaeConfig, ModelConfig
from sam_ds.modeling.convert import save_weights
from sam_ds.modeling.presets import build_mae, build_sam
from tests.cli.test_bad_input import fails


def says(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_both_phases_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    out = says(capsys, "check", "--recipe", "tiny_from_mae")
    assert "starting from pretrain=mae_tiny: 50 weights taken, 1 resized (image_encoder.pos_embed)" in out
    assert "mae_tiny with " in out and "tiny_from_mae with " in out
    alone = says(capsys, "check", "--recipe", "tiny_from_mae", "--set", "pretrain=")
    assert "starting from" not in alone and "mae_tiny with" not in alone.replace("tiny_from_mae with", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "pretrain=mae_tinny"], ["no recipe 'mae_tinny'", "did you mean mae_tiny"]),
        (["--set", "pretrain=tiny_from_mae"], ["pretrain=tiny_from_mae: it has a pretrain itself"]),
        (["--set", "pretrain=mae_vit_b"], ["pretrain=mae_vit_b holds a ViT of width 768 and depth 12", "width 128"]),
        (["--set", "pretrain=tiny", "--set", "model.preset=vit_b"], ["pretrain=tiny holds the weights of another"]),
        (["--pretrain_set", "optim.rl=1"], ["--pretrain_set optim.rl=1", "optim.lr"]),
        (["--pretrain_deepspeed_config", "zero2_a100x256"], ["1 rank = 1", "start 256 ranks"]),
        (
            ["--set", "pretrain=", "--pretrain_set", "seed=1"],
            ["--pretrain_set would do nothing", "the recipe has none"],
        ),
        (
            ["--set", "model.init=x.pth", "--pretrain_data", "y"],
            ["--pretrain_data would do nothing", "x.pth is in its"],
        ),
        (["--gradients", "--pretrain_set", "seed=1"], ["--gradients", "--pretrain_set"]),
        (["--set", "model.init=nowhere"], ["model.init=nowhere: there is nothing"]),
        (["--pretrain_data", "nowhere"], ["nowhere"]),
    ],
)
def test_mistakes(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "check", "--recipe", "tiny_from_mae", *arguments)
    for word in words:
        assert word in line


def test_a_start_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(build_mae(ModelConfig(preset="vit_tiny"), MaeConfig()).state_dict(), tmp_path / "mae.pth")
    save_weights(build_sam(ModelConfig(preset="tiny")).state_dict(), tmp_path / "sam.safetensors")
    check = ("check", "--recipe", "tiny", "--set")
    assert "mae.pth: 50 weights taken" in says(capsys, *check, f"model.init={tmp_path / 'mae.pth'}")
    assert "sam.safetensors: 202 weights taken" in says(capsys, *check, f"model.init={tmp_path / 'sam.safetensors'}")
    line = fails(capsys, *check, f"model.init={tmp_path / 'mae.pth'}", "--set", "model.preset=vit_b")
    assert f"{tmp_path / 'mae.pth'} holds a ViT of width 128 and depth 4" in line
    assert "there is no complete checkpoint" in fails(capsys, *check, f"model.init={tmp_path}")
    train = ("train", "--recipe", "tiny", "--data", tmp_path, "--output", tmp_path / "run", "--set")
    assert "another.pth: there is nothing" in fails(capsys, *train, f"model.init={tmp_path / 'another.pth'}")
    line = fails(capsys, *train, f"model.init={tmp_path / 'sam.safetensors'}", "--set", "model.preset=vit_b")
    assert "sam.safetensors holds the weights of another model" in line


def test_the_plan_has_both_phases(capsys: pytest.CaptureFixture[str]) -> None:
    plan = ("plan", "--recipe", "tiny_from_mae", "--pretrain_set", "train.steps=1000", "--json")
    values = json.loads(says(capsys, *plan))
    first, second = values["phases"]
    assert (first["recipe"], second["recipe"]) == ("mae_tiny", "tiny_from_mae")
    together = values["together"][0]
    assert together["days"] == pytest.approx(first["days"] + second["days"], abs=0.011)
    assert together["cost_dollars"] == pytest.approx(first["cost_dollars"] + second["cost_dollars"], abs=1.1)
