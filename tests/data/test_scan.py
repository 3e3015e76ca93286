"""What counts as a sample is the same in folders and in tars."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sam_ds.data.imagenet import PictureIndex, open_pictures
from sam_ds.data.index import Index, open_index
from sam_ds.data.pictures import PictureReader
from sam_ds.data.scan import has_pairs
from sam_ds.data.table import Table, build_table
from tests.data.photos import jpeg, pack, write

# What a Mac and Jupyter leave behind.
_HIDDEN = ("n01/._{}", "._{}", ".ipynb_checkpoints/{}", "n01/.ipynb_checkpoints/{}", "__MACOSX/n01/._{}")


@pytest.mark.parametrize(("cls", "seen"), [(Index, ("./1.jpg", "./1.json")), (PictureIndex, ("./n01/1.jpg",))])
def test_hidden_files_are_left_out_of_tars_as_of_folders(tmp_path: Path, cls: type[Table], seen: tuple) -> None:
    names = [*seen, *(name.format(file) for name in _HIDDEN for file in ("2.jpg", "2.json"))]
    contents = {name: jpeg(1) for name in names}
    write(tmp_path / "loose", contents)
    pack(tmp_path / "tars" / "0000.tar", contents)
    loose, tars = (build_table(cls, tmp_path / kind) for kind in ("loose", "tars"))
    assert loose.samples == tars.samples == 1 and not tars.findings
    if cls is PictureIndex:
        assert open_pictures(tmp_path / "loose").classes == open_pictures(tmp_path / "tars").classes == ["n01"]


def test_hidden_pictures_do_not_say_of_which_kind_a_tar_is(tmp_path: Path) -> None:
    pack(tmp_path / "0.tar", {"./._sa_1.jpg": b"x"})
    pack(tmp_path / "1.tar", {"./sa_1.jpg": jpeg(1), "./sa_1.json": b"{}"})
    assert has_pairs(tmp_path)


def test_pictures_are_found_however_their_extension_is_spelt(tmp_path: Path) -> None:
    kinds = ("jpg", "JPG", "Jpg", "JPEG", "jpeg", "jfif", "JFIF", "pNg", "tif", "TIFF", "webp", "bmp", "GIF")
    contents = {f"n01/{place}.{kind}": jpeg(place) for place, kind in enumerate(kinds)}
    others = dict.fromkeys(("n01/jpg", "n01/1.jpg.txt", "n01/1.svg"), b"x")
    write(tmp_path / "loose", contents | others)
    pack(tmp_path / "tars" / "0000.tar", contents | others)
    for index in (open_pictures(tmp_path / "loose"), open_pictures(tmp_path / "tars")):
        reader = PictureReader(index)
        assert {reader.read(sample)[0] for sample in range(len(index))} == set(contents.values())


@pytest.mark.parametrize("opened", [open_index, open_pictures])
def test_an_index_of_the_format_before_is_built_anew(tmp_path: Path, opened) -> None:
    """It may hold hidden files of tars."""
    pack(tmp_path / "0.tar", {"1.jpg": jpeg(1), "1.json": b"{}"})
    header = tmp_path / ".sam_ds_index" / opened(tmp_path).kind.header
    written = json.loads(header.read_text())
    header.write_text(json.dumps(written | {"format": 1, "report": {}}))
    opened(tmp_path)
    assert json.loads(header.read_text()) == written
