"""``sam-ds data``: a set is drawn, indexed and looked at; mistakes are one line and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sam_ds.cli.main import main

SMALL = ("--train", "4", "--val", "1", "--size", "64", "96", "--objects", "3", "6")


@pytest.fixture
def drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["data", "synth", str(tmp_path / "set"), *SMALL, "--tar"]) == 0
    assert "4 + 1 pictures" in capsys.readouterr().out
    return tmp_path / "set"


def test_synth_again(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "synth", str(drawn), *SMALL, "--tar"]) == 0
    assert "there already" in capsys.readouterr().out


def test_index(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = drawn / "train" / "sa_000000.tar"
    with open(tar, "r+b") as file:
        file.truncate(tar.stat().st_size // 2)
    assert main(["data", "index", str(drawn / "train")]) == 0
    out = capsys.readouterr().out
    assert "1 truncated" in out and "truncated: sa_000000.tar: ends at byte" in out


def test_show(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "picture.png"
    assert main(["data", "show", str(drawn / "train"), "--index", "2", "-o", str(output)]) == 0
    out = capsys.readouterr().out
    assert "picture 2 of 4" in out and "masks" in out
    with Image.open(output) as picture:
        assert f"{picture.width}x{picture.height} pixels" in out


def test_whole_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, name in (("train", "cat/1.png"), ("train", "dog/1.png"), ("val", "dog/2.png")):
        path = tmp_path / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), "red").save(path)
    (tmp_path / "train" / "cow").mkdir()
    assert main(["data", "index", str(tmp_path)]) == 0
    first, finding, second = capsys.readouterr().out.splitlines()
    assert "/train: 2 pictures of 2 classes, 0 tars, 1 empty" in first
    assert "empty: cow: there is no picture in it" in finding
    assert "/val: 1 pictures of 1 classes, 0 tars, no faults" in second
    output = tmp_path / "picture.png"
    assert main(["data", "show", str(tmp_path), "--index", "1", "-o", str(output)]) == 0
    out = capsys.readouterr().out
    assert "dog/1.png: picture 1 of 2, 9x7 pixels\nclass 1 of 2: dog\n" in out
    with Image.open(output) as picture:
        assert picture.size == (9, 7)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["index", "{tmp}/nowhere"], "there is no data folder"),
        (["index", "{tmp}"], "no picture in"),
        (["show", "{set}/train", "--index", "9", "-o", "{tmp}/x.png"], "has pictures 0 to 3, not 9"),
        (["show", "{set}/train", "-o", "{tmp}/none/x.png"], "cannot be written"),
        (["synth", "{set}", "--train", "7"], "other settings"),
        (["synth", "{tmp}/y", "--size", "64", "9999"], "sides must be"),
    ],
)
def test_mistakes(
    drawn: Path, tmp_path: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    filled = [a.format(tmp=tmp_path / "empty" if a == "{tmp}" else tmp_path, set=drawn) for a in arguments]
    assert main(["data", *filled]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
