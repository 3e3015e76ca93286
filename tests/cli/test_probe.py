"""``sam-ds probe`` on untrained encoders, and what it says to mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sam_ds import recipes
from sam_ds.cli.main import main
from sam_ds.config import recipe_file
from sam_ds.config.schema import ModelConfig
from sam_ds.modeling.convert import read_weights, save_weights
from sam_ds.modeling.presets import build_mae, build_sam
from tests.cli.test_bad_input import fails
from tests.data.photos import encode, write
from tests.storage.cases import complete


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one checkpoint of an untrained masked autoencoder."""
    recipe = recipes.get("mae_tiny")
    recipe = replace(recipe, data=replace(recipe.data, workers=0))
    checkpoint = tmp_path_factory.mktemp("run") / "checkpoints" / "step_00000010"
    checkpoint.mkdir(parents=True)
    torch.manual_seed(recipe.seed)
    save_weights(build_mae(recipe.model, recipe.mae).state_dict(), checkpoint / "weights.safetensors")
    complete(checkpoint, 10, recipe_file.to_dict(recipe))
    return checkpoint.parents[1]


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ with a folder for dark pictures and one for bright ones."""

    def pictures(count: int) -> dict[str, bytes]:
        shades = {"bright": 200, "dark": 20}
        return {
            f"{name}/{i}.png": encode(Image.new("RGB", (64, 64), (shade + i, shade, shade - i)), "PNG")
            for name, shade in shades.items()
            for i in range(count)
        }

    root = tmp_path_factory.mktemp("colours")
    for split, count in (("train", 8), ("val", 4)):
        write(root / split, pictures(count))
    return root


def probed(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["probe", *map(str, arguments), "--json", "--device", "cpu"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_what_any_encoder_can_tell_apart(encoder: Path, colours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = probed(capsys, encoder, "--data", colours, "--untrained")
    assert list(found) == ["untrained, 20 neighbours", "untrained, linear layer", "20 neighbours", "linear layer"]
    assert found["linear layer"]["top1"] == 1.0 and found["linear layer"]["pictures"] == 8
    assert found["20 neighbours"] == found["untrained, 20 neighbours"]  # the fixture's weights have the same seed


def test_a_table_for_people_and_fewer_pictures(
    encoder: Path, colours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", colours, "--max-train", 4, "--set", "eval.max_pictures=2"]
    assert probed(capsys, encoder, *arguments)["linear layer"]["pictures"] == 2
    assert main(["probe", str(encoder), *map(str, arguments), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "20 neighbours" in lines[0] and "linear layer" in lines[0] and lines[1].startswith("top-1, %")


def test_an_encoder_alone_is_enough(
    encoder: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MAE's release for fine-tuning has no decoder, and is a .pth."""
    whole = read_weights(encoder / "checkpoints" / "step_00000010" / "weights.safetensors")
    alone = {name: weight for name, weight in whole.items() if not name.startswith(("decoder_", "mask_token"))}
    path = tmp_path / "mae_pretrain.pth"
    torch.save({"model": alone}, path)
    asked = ["probe", path, "--recipe", "mae_tiny", "--data", colours, "--set", "data.workers=0", "--device", "cpu"]
    assert main([*map(str, asked), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == probed(capsys, encoder, "--data", colours)
    assert said.err.startswith(f"{path}: {len(alone)} weights taken, ") and "decoder_blocks" in said.err
    for name in ("norm.bias", "cls_token"):
        torch.save({other: weight for other, weight in alone.items() if other != name}, path)
        assert f"{path} lacks {name}" in fails(capsys, *asked)
    save_weights(build_sam(ModelConfig(preset="tiny_256")).state_dict(), tmp_path / "sam.pth")
    assert "holds SAM's encoder" in fails(capsys, "probe", tmp_path / "sam.pth", *asked[2:])


def test_mistakes(encoder: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing at" in fails(capsys, "probe", tmp_path / "gone", "--data", colours)
    assert "at least 2 classes" in fails(capsys, "probe", encoder, "--data", colours / "train" / "dark")
    assert "no number of pictures" in fails(capsys, "probe", encoder, "--data", colours, "--max-train", "0")
    said = fails(capsys, "probe", encoder, "--data", colours, "--max-train", "1", "--device", "cpu")
    assert "all of one class: take more of them (--max-train)" in said
    single = tmp_path / "single.safetensors"
    save_weights({"a": torch.zeros(1)}, single)
    assert "--raw chooses among" in fails(capsys, "probe", single, "--recipe", "mae_tiny", "--data", colours, "--raw")
