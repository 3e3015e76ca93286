"""Weights files: whole, flat, never executed; a wrong one gives one clear line."""

from __future__ import annotations

import argparse
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sam_ds.config.errors import UserError
from sam_ds.modeling import convert
from sam_ds.modeling.convert import load_weights, read_weights, save_weights


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_there_and_back(tmp_path: Path, suffix: str) -> None:
    shared = torch.randn(4, 6)
    state = {"a": shared, "b": shared.t(), "c": torch.randn(3).bfloat16()}  # shared memory, strides, another type
    path = tmp_path / "new" / f"weights{suffix}"
    save_weights(state, path)
    assert_close(read_weights(path), state, rtol=0, atol=0, check_stride=False)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("weights.bin", b"", "read and written as .pth or .safetensors"),
        ("absent.pth", None, "there are no weights at"),
        ("cut.pth", b"PK\x03\x04 not a whole file", "is not a readable .pth file"),
        ("empty.pth", b"", "is not a readable .pth file"),
        ("cut.safetensors", b"\x10", "is not a readable .safetensors file"),
        ("text.pth", b"hello, world", "is not a readable .pth file of weights (its pickle is damaged"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


class Program:
    """Runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def _with_code(path: Path, form: str) -> None:
    weights = {"weight": torch.zeros(1), "args": Program(path.with_name("ran"))}
    if form == "pickle":
        path.write_bytes(pickle.dumps(weights))
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=form == "zip")


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_code_is_not_run(tmp_path: Path, form: str) -> None:
    path = tmp_path / "weights.pth"
    _with_code(path, form)
    with pytest.raises(UserError, match=rf"^{path} is refused: .* run code from it .*--trust-checkpoint") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_code_is_run_for_who_trusts_its_maker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(convert._Trust, "given", False)
    convert.trust_pickles()
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.ones(1), "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(UserError, match="does not hold a flat state dict"):
        read_weights(path)
    _with_code(path, "zip")
    with pytest.raises(UserError, match="does not hold a flat state dict"):
        read_weights(path)
    assert (tmp_path / "ran").exists()
    assert caplog.text.count("TRUSTED") == 2 and str(path) in caplog.text
    save_weights({"weight": torch.ones(1)}, path)
    read_weights(path)  # needs no trust, and says nothing
    assert caplog.text.count("TRUSTED") == 2


def test_weights_wrapped_as_in_mae_s_release(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.ones(2)}}, tmp_path / "released.pth")
    assert_close(read_weights(tmp_path / "released.pth"), {"weight": torch.ones(2)})


def test_a_training_checkpoint_is_not_weights(tmp_path: Path) -> None:
    torch.save({"state": {"weight": torch.zeros(1)}, "step": 3}, tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match=r"does not hold a flat state dict of tensors: .*sam-ds export"):
        read_weights(tmp_path / "checkpoint.pth")


def test_another_model_is_described(tmp_path: Path) -> None:
    save_weights(nn.Linear(3, 2).state_dict() | {"extra": torch.zeros(1)}, tmp_path / "linear.pth")
    with pytest.raises(UserError, match=r"1 are unknown \(such as extra\), 1 have another shape .*\[2, 3\] instead of"):
        load_weights(nn.Linear(4, 2), tmp_path / "linear.pth")
