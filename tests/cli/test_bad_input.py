"""What users get wrong when they start a training: each is one line that names it and a way out, and exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sam_ds.cli.main import main
from sam_ds.config.errors import RankError, UserError
from sam_ds.config.schema import ModelConfig
from sam_ds.modeling.convert import save_weights
from sam_ds.modeling.presets import build_sam


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line a command ends with."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "sam_vit_x"], ["'sam_vit_x'", "did you mean sam_vit_"]),
        (["--recipe", "tiny", "--set", "optim.leyer_decay=1"], ["did you mean optim.layer_decay"]),
        (["--recipe", "tiny", "--set", "train.steps=many"], ["train.steps must be a whole number", "'many'"]),
        (["--recipe", "tiny", "--set", "prompts.point=2"], ["prompts.point"]),
        (["--recipe", "tiny", "--set", "model.preset=vit_x"], ["model.preset: there is no 'vit_x'", "vit_"]),
        (["--recipe", "tiny", "--set", "curriculum.crop_sizes=100,256,512"], ["data.crop_size=100", "(8 pixels)"]),
        (["--recipe", "tiny", "--deepspeed_config", "."], [".: no such DeepSpeed config"]),
        (["--recipe", "tiny", "--deepspeed_config", "zero2_local.yaml"], ["zero2_local.yaml", "zero2_local.json"]),
        (["--recipe", "tiny", "--deepspeed_config", "zero5_local"], ["zero5_local", "zero3_local.json"]),
        (["--recipe", "tiny", "--deepspeed_config", "zero2_a100x256"], ["1 rank = 1", "start 256 ranks"]),
    ],
)
def test_recipe_and_config(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "check", *arguments)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"zero_optimizatoin": {"stage": 2}}, ["zero_optimizatoin", "did you mean zero_optimization"]),
        ({"optimizer": {"type": "AdamW"}}, ["optim.lr"]),
        ({"communication_data_type": "float32"}, ["communication_data_type", "fp32, bf16, fp16"]),
        ({"zero_optimization": {"reduce_bucket_size": -5}}, ["reduce_bucket_size must not be negative"]),
        ({"zero_force_ds_cpu_optimizer": True}, ["optim.implementation"]),
        ({"train_batch_size": 7}, ["train_batch_size 7", "set train_batch_size 2"]),
    ],
)
def test_a_config_file(
    change: dict[str, Any], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"train_micro_batch_size_per_gpu": 2, **change}))
    line = fails(capsys, "check", "--recipe", "tiny", "--deepspeed_config", path)
    for word in [str(path), *words]:
        assert word in line


def test_a_hostfile_with_other_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=3\n")
    options = ("--recipe", "tiny", "--deepspeed_config", "zero2_local", "--hostfile", hosts)
    assert "3 ranks" in fails(capsys, "check", *options)
    assert "256 ranks" in fails(capsys, "check", "--recipe", "tiny", "--hostfile", "hostfiles/a100x256.hostfile")
    hosts.write_text("a slots=1\nb slots=1\n")
    assert main(["check", *map(str, options)]) == 0


def test_data_that_is_not_there_or_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ("train", "--recipe", "tiny", "--output", tmp_path / "run", "--data")
    assert str(tmp_path / "nowhere") in fails(capsys, *train, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in fails(capsys, *train, tmp_path / "empty")


def test_one_rank_alone_is_heard(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake that all ranks make is printed once a machine; one that a rank makes alone, by that rank."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    for error, heard in ((UserError("all"), False), (RankError("alone"), True)):
        monkeypatch.setattr("sam_ds.cli.check.run", raiser(error))
        assert main(["check", "--recipe", "tiny"]) == 2
        assert ("rank 1: alone" in capsys.readouterr().err) == heard


def raiser(error: Exception) -> Callable[[object], int]:
    def run(_: object) -> int:
        raise error

    return run


def test_weights_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "other.pth"
    save_weights({"head.weight": next(build_sam(ModelConfig(preset="tiny")).parameters())}, weights)
    picture = tmp_path / "picture.png"
    Image.new("RGB", (40, 30)).save(picture)
    predict = ("predict", picture, "--point", "3,4", "-o", tmp_path / "out.png", "--preset", "tiny", "--checkpoint")
    line = fails(capsys, *predict, weights)
    assert str(weights) in line
    assert "another model" in line
    assert "nowhere.pth" in fails(capsys, *predict, tmp_path / "nowhere.pth")
