"""Weights files: whole, flat, never executed; a wrong one gives one clear line."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sam_ds.config.errors import UserError
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
        ("code.pth", pickle.dumps(print, protocol=2), "is not a readable .pth file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_training_checkpoint_is_not_weights(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1)}, "step": 3}, tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match=r"does not hold a flat state dict of tensors: .*sam-ds export"):
        read_weights(tmp_path / "checkpoint.pth")


def test_another_model_is_described(tmp_path: Path) -> None:
    save_weights(nn.Linear(3, 2).state_dict() | {"extra": torch.zeros(1)}, tmp_path / "linear.pth")
    with pytest.raises(UserError, match=r"1 are unknown \(such as extra\), 1 have another shape .*\[2, 3\] instead of"):
        load_weights(nn.Linear(4, 2), tmp_path / "linear.pth")
