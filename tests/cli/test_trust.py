"""Weights that somebody else made are not run, unless the user says so, and then loudly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from sam_ds.cli.main import main
from sam_ds.config.schema import ModelConfig
from sam_ds.data.synthetic import SyntheticConfig, synthesize
from sam_ds.modeling import convert
from sam_ds.modeling.presets import build_sam


class Program:
    """Runs when it is unpickled, and becomes a tensor."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return _run, (self.path,)


def _run(path: str) -> torch.Tensor:
    Path(path).touch()
    return torch.zeros(1)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(convert._Trust, "given", False)
    state = build_sam(ModelConfig(preset="tiny")).state_dict()
    path = tmp_path / "weights.pth"
    torch.save({**state, "program": Program(tmp_path / "ran")}, path)
    Image.new("RGB", (40, 30)).save(tmp_path / "picture.png")
    synthesize(tmp_path / "data", SyntheticConfig(2, 2, 0, (64, 96), (3, 5), False))
    return path


def _commands(weights: Path) -> dict[str, list[str]]:
    folder = weights.parent
    data, output = ["--data", str(folder / "data")], ["--output", str(folder / "out")]
    picture = [str(folder / "picture.png"), "--point", "3,4", "-o", str(folder / "out.png")]
    return {
        "train": ["train", "--recipe", "tiny", *data, *output, "--set", f"model.init={weights}"],
        "eval": ["eval", str(weights), "--preset", "tiny", *data, *output],
        "predict": ["predict", *picture, "--preset", "tiny", "--checkpoint", str(weights)],
    }


@pytest.mark.parametrize("command", ["train", "eval", "predict"])
def test_refused(weights: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_commands(weights)[command]) == 2
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("sam-ds: ")]
    assert str(weights) in line and "--trust-checkpoint" in line and "Traceback" not in said
    assert not (weights.parent / "ran").exists()


def test_trusted_aloud(weights: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    assert main([*_commands(weights)["predict"], "--trust-checkpoint"]) == 2
    assert "1 are unknown (such as program)" in capsys.readouterr().err  # it was read, and is another model's
    assert f"TRUSTED: {weights} is unpickled" in caplog.text and (weights.parent / "ran").exists()


def test_trust_is_no_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe.json is handed on too."""
    assert main(["check", "--recipe", "tiny", "--set", "model.trust=true"]) == 2
    assert "no setting 'model.trust'" in capsys.readouterr().err
