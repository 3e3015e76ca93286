"""sam-ds export: from a run folder or a checkpoint to one file, and what is said when there is nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sam_ds.cli.main import main
from sam_ds.config.schema import ModelConfig
from sam_ds.modeling.convert import read_weights, save_weights
from sam_ds.modeling.presets import build_sam
from tests.storage.cases import complete


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    weights = build_sam(ModelConfig(preset="tiny")).state_dict()
    for step in (10, 20):
        changed = {name: tensor + step for name, tensor in weights.items()}
        checkpoint = folder / "checkpoints" / f"step_{step:08d}"
        save_weights(changed, checkpoint / "weights.safetensors")
        complete(checkpoint, step)
    save_weights(weights, folder / "checkpoints" / "step_00000030" / "weights.safetensors")  # it was never finished
    return folder


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_last_whole_checkpoint_is_written(run_folder: Path, suffix: str, tmp_path: Path) -> None:
    output = tmp_path / f"model{suffix}"
    assert main(["export", str(run_folder), "-o", str(output)]) == 0
    last = read_weights(run_folder / "checkpoints" / "step_00000020" / "weights.safetensors")
    written = read_weights(output)
    assert written.keys() == last.keys()
    for name, tensor in last.items():
        torch.testing.assert_close(written[name], tensor, rtol=0, atol=0)


def test_a_checkpoint_can_be_named(run_folder: Path, tmp_path: Path) -> None:
    named = run_folder / "checkpoints" / "step_00000010"
    assert main(["export", str(named), "-o", str(tmp_path / "a.pth")]) == 0
    wanted = read_weights(named / "weights.safetensors")
    name = next(iter(wanted))
    torch.testing.assert_close(read_weights(tmp_path / "a.pth")[name], wanted[name], rtol=0, atol=0)


def test_the_mean_of_the_weights_comes_first(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "step_00000010"
    for name, value in (("weights", 1.0), ("ema", 2.0)):
        save_weights({"a": torch.full((3,), value)}, checkpoint / f"{name}.safetensors")
    complete(checkpoint, 10)
    for option, value in (([], 2.0), (["--raw"], 1.0)):
        assert main(["export", str(tmp_path), "-o", str(tmp_path / "a.pth"), *option]) == 0
        assert read_weights(tmp_path / "a.pth")["a"].tolist() == [value] * 3


def test_damaged_weights_are_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "checkpoints" / "step_00000010" / "weights.safetensors"
    save_weights({"a": torch.zeros(100)}, weights)
    complete(weights.parent, 10)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["export", str(tmp_path), "-o", str(tmp_path / "a.pth")]) == 2
    said = capsys.readouterr().err
    assert f"{weights} is not what was written" in said and len(said.splitlines()) == 1
    assert not (tmp_path / "a.pth").exists()


def test_mistakes(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run_folder), "-o", str(tmp_path / "model.onnx")]) == 2
    assert ".pth or .safetensors" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "-o", str(tmp_path / "a.pth")]) == 2
    assert "no complete checkpoint" in capsys.readouterr().err
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "folder.pth", tmp_path / "file" / "a.pth", tmp_path / "file" / "a.safetensors"):
        assert main(["export", str(run_folder), "-o", str(output)]) == 2
        said = capsys.readouterr().err
        assert f"{output} cannot be written" in said and len(said.splitlines()) == 1


def test_a_set_is_not_drawn_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "set"):
        assert main(["data", "synth", str(folder), "--train", "1", "--val", "1"]) == 2
        said = capsys.readouterr().err
        assert f"{folder} cannot be written" in said and len(said.splitlines()) == 1
