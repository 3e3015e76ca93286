"""Masked autoencoding by the commands: what they show, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sam_ds import recipes
from sam_ds.cli.main import main
from sam_ds.config import recipe_file
from sam_ds.modeling.convert import read_weights, save_weights
from sam_ds.modeling.presets import build_mae
from tests.storage.cases import complete

CONFIG = "zero2_a100x128_batch4096.json"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one checkpoint of an untrained model."""
    recipe = recipes.get("mae_tiny")
    recipe = replace(recipe, data=replace(recipe.data, workers=0))
    checkpoint = tmp_path_factory.mktemp("run") / "checkpoints" / "step_00000010"
    checkpoint.mkdir(parents=True)
    torch.manual_seed(0)
    save_weights(build_mae(recipe.model, recipe.mae).state_dict(), checkpoint / "weights.safetensors")
    complete(checkpoint, 10, recipe_file.to_dict(recipe))
    return checkpoint.parents[1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (150, 200, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_eval_measures_and_draws(run_dir: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(pictures), "--val", str(pictures), "--untrained", "--device", "cpu"]
    assert main(["eval", str(run_dir), *arguments, "--set", "eval.pictures=2"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].split() == ["flat", "patches", "untrained", "model"]
    assert "loss of masked patches" in said and "2 pictures drawn" in said
    output = run_dir / "evaluation" / "step_00000010"
    metrics = json.loads((output / "eval.json").read_text())["metrics"]
    assert metrics["untrained"] == metrics["model"]  # the fixture's weights have the same seed
    assert metrics["model"]["pictures"] == 3
    assert metrics["flat patches"]["loss"] == pytest.approx(191 / 192, rel=1e-4)  # the variance is the unbiased one
    drawn = sorted((output / "pictures").glob("*.png"))
    assert [path.name for path in drawn] == ["00000000.png", "00000001.png"]
    with Image.open(drawn[0]) as row:
        assert row.size == (4 * 384 + 3 * 4, 384 + 16)


def test_weights_are_exported_under_their_own_names(run_dir: Path, tmp_path: Path) -> None:
    assert main(["export", str(run_dir), "-o", str(tmp_path / "mae.pth")]) == 0
    assert {"cls_token", "blocks.3.mlp.fc2.bias", "decoder_pos_embed"} <= read_weights(tmp_path / "mae.pth").keys()
    arguments = ["eval", str(tmp_path / "mae.pth"), "--recipe", "tiny", "--data", str(tmp_path), "--device", "cpu"]
    assert main(arguments) == 2  # another model's


def test_no_click_is_answered(run_dir: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--checkpoint", str(run_dir), "--point", "5,5", "-o", "out.png", "--device", "cpu"]
    assert main(["predict", str(pictures / "1.png"), *arguments]) == 2
    said = capsys.readouterr().err
    assert "was trained for task=pretrain_mae: only a SAM answers to a click" in said and len(said.splitlines()) == 1


def test_the_plan_shows_the_rate_of_the_batch_and_what_the_paper_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--recipe", "mae_vit_l", "--deepspeed_config", CONFIG]) == 0
    said = capsys.readouterr().out
    assert "4,096 pictures a step: 32 × 1 × 128; learning rate 0.0024" in said
    assert "31 hours on 128 TPU-v3 cores" in said and "It fits" in said and "masks a picture" not in said


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["optim.lr=0.05", "optim.lr_batch=1"], "optim.lr=0.05 for optim.lr_batch=1 pictures is 0.4 for the 8 of a"),
        (["mae.mask_ratio=0.999"], "mae.mask_ratio=0.999: must be from 0.01 to 0.99"),
        (["model.preset=vit_b"], "there is no plain ViT 'vit_b'"),
    ],
)
def test_check_refuses_with_one_line(settings: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = [word for setting in settings for word in ("--set", setting)]
    assert main(["check", "--recipe", "mae_tiny", *options]) == 2
    said = capsys.readouterr().err
    assert expected in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("name", ["mae_vit_b", "mae_vit_l", "mae_vit_h", "mae_meta_sam_large"])
def test_check_passes_the_large_ones(name: str, repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hosts = str(repo_root / "hostfiles" / "a100x128.hostfile")
    assert main(["check", "--recipe", name, "--deepspeed_config", CONFIG, "--hostfile", hosts]) == 0
    assert "the settings hold together" in capsys.readouterr().out


def test_check_says_that_a_pretraining_has_another_s_batch(repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--deepspeed_config", "zero2_a100x128_batch1024.json"]
    options += ["--hostfile", str(repo_root / "hostfiles" / "a100x128.hostfile")]
    assert main(["check", "--recipe", "meta_sam_large", *options]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert len(notes) == 1 and "mae_meta_sam_large is made for 4,096 pictures a step" in notes[0]
