"""Whole pictures are found in every layout, with the same classes; what does not fit is said."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from sam_ds.config.errors import UserError
from sam_ds.data.files import BadSampleError
from sam_ds.data.imagenet import NO_CLASS, PictureIndex, need_classes, open_picture_splits, open_pictures
from sam_ds.data.index import open_index
from sam_ds.data.pictures import PictureReader
from sam_ds.data.scan import has_pairs
from sam_ds.data.table import build_table
from tests.data.photos import CLASSES, files, jpeg, pack, write


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write(tmp_path / "folders", files())


def _content(index: PictureIndex) -> dict[bytes, str]:
    """Of every picture, the class."""
    reader = PictureReader(index)
    found = [reader.read(i) for i in range(len(index))]
    return {content: index.classes[label] if label >= 0 else "" for content, label in found}


def _tar_a_class(folder: Path) -> Path:
    for name in CLASSES:
        pack(folder / f"{name}.tar", {Path(f).name: c for f, c in files().items() if f.startswith(name)})
    return folder


def _shards(folder: Path) -> Path:
    contents = list(files().items())
    for shard in range(4):
        pack(folder / f"imagenet-train-{shard:06}.tar", {f"./{name}": content for name, content in contents[shard::4]})
    return folder


def _webdataset(folder: Path) -> Path:
    contents = [(Path(name).name, content, name.partition("/")[0]) for name, content in files().items()]
    for shard in range(4):
        members: dict[str, bytes] = {}
        for name, content, its_class in contents[shard::4]:
            stem = Path(name).stem
            members |= {name: content, f"{stem}.cls": f"{its_class}\n".encode(), f"{stem}.json": b"{}"}
        pack(folder / f"imagenet1k-train-{shard:04}.tar", members)
    return folder


def _numbered_below_folders(folder: Path) -> Path:
    for name in CLASSES:
        pack(folder / name / "0000.tar", {Path(f).name: c for f, c in files().items() if f.startswith(name)})
    return folder


LAYOUTS = (_tar_a_class, _shards, _webdataset, _numbered_below_folders)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_hold_the_same(folders: Path, tmp_path: Path, layout) -> None:
    index = open_pictures(layout(tmp_path / "other"))
    assert index.classes == list(CLASSES) and len(index) == 12
    expected = {content: name.partition("/")[0] for name, content in files().items()}
    assert _content(index) == _content(open_pictures(folders)) == expected
    assert build_table(PictureIndex, tmp_path / "other").findings == []


def test_classes_are_sorted_however_they_are_met(tmp_path: Path) -> None:
    pack(tmp_path / "0000.tar", {"z/1.jpg": jpeg(1), "b/2.jpg": jpeg(2), "a/3.jpg": jpeg(3)})
    write(tmp_path, {"m/4.png": jpeg(4)})
    index = open_pictures(tmp_path)
    assert index.classes == ["a", "b", "m", "z"]
    assert _content(index) == {jpeg(1): "z", jpeg(2): "b", jpeg(3): "a", jpeg(4): "m"}


def test_classes_that_are_numbers_are_sorted_as_such(tmp_path: Path) -> None:
    pack(
        tmp_path / "0000.tar",
        {f"{i}.{kind}": jpeg(i) if kind == "jpg" else b"%d" % i for i in (10, 9, 0, 100) for kind in ("cls", "jpg")},
    )
    index = open_pictures(tmp_path)
    assert index.classes == ["0", "9", "10", "100"]
    assert _content(index) == {jpeg(i): str(i) for i in (0, 9, 10, 100)}
    pack(tmp_path / "0001.tar", {"x/7.jpg": jpeg(7), "8.jpg": jpeg(8), "8.cls": b"\xff" * 300})
    index = open_pictures(tmp_path)
    assert index.classes == ["0", "10", "100", "9", "x"] and index.unlabelled() == 1


def test_plain_pictures_and_those_beside_masks_have_no_class(tmp_path: Path) -> None:
    write(tmp_path, {"1.jpg": jpeg(1), "2.webp": jpeg(2), "notes.txt": b"x", "1.json": b"{}"})
    pack(tmp_path / "sa_000000.tar", {"./sa_1.jpg": jpeg(3), "./sa_1.json": b"{}"})
    index = open_pictures(tmp_path)
    assert index.classes == [] and set(_content(index).values()) == {""} and len(index) == 3
    report = build_table(PictureIndex, tmp_path)
    assert str(report) == f"{tmp_path.resolve()}: 3 pictures without classes, 1 tars, no faults"


def test_beside_an_index_of_masks(loose: Path) -> None:
    """Two kinds of one folder: neither takes the other's table, nor removes it."""
    with_masks = open_index(loose)
    pictures = open_pictures(loose)
    assert len(pictures) == len(with_masks) == 12
    home = loose / ".sam_ds_index"
    before = {path.name: path.stat().st_mtime_ns for path in home.iterdir()}
    assert sorted(name.partition("-")[0] for name in before) == ["index.json", "pictures", "pictures.json", "samples"]
    assert len(open_index(loose)) == len(open_pictures(loose)) == 12
    assert {path.name: path.stat().st_mtime_ns for path in home.iterdir()} == before


def test_is_renewed(folders: Path) -> None:
    first = open_pictures(folders).fingerprint()
    assert open_pictures(folders).fingerprint() == first
    write(folders, {"n02/new.png": jpeg(99)})
    index = open_pictures(folders)
    assert len(index) == 13 and index.fingerprint() != first


def test_pickled(folders: Path) -> None:
    index = open_pictures(folders).subset(np.array([3, 9])).known_as(["n10", "n01"])
    copy = pickle.loads(pickle.dumps(index))
    assert [copy.name(i) for i in range(2)] == [index.name(i) for i in range(2)]
    assert [copy.label(i) for i in range(2)] == [index.label(i) for i in range(2)] == [1, 0]


def test_report_of_faults(folders: Path, tmp_path: Path) -> None:
    (folders / "n03").mkdir()
    (folders / "n04" / "below").mkdir(parents=True)
    write(folders, {"n05/readme.txt": b"x", "n06/below/1.jpg": jpeg(1)})
    (folders / "n07").symlink_to(tmp_path)
    pack(folders / "n08.tar", {"a.jpg": jpeg(2), "../b.jpg": jpeg(3), "c.jpg": jpeg(4), "./a.jpg": jpeg(5)})
    pack(folders / "n09.tar", {"a.txt": b"x"})
    pack(folders / "n11.tar", {"a.jpg": jpeg(6), "b.jpg": jpeg(7)})
    with open(folders / "n11.tar", "r+b") as file:
        file.truncate(2 * 512 + len(jpeg(6)) // 512 * 512 + 700)
    (folders / "n12.tar.GZ").write_bytes(b"x")
    report = build_table(PictureIndex, folders)
    assert {(f.kind, f.place) for f in report.findings} == {
        ("empty", "n03"),
        ("empty", "n04"),
        ("empty", "n05"),
        ("link", "n07"),
        ("outside", "n08.tar"),
        ("duplicate", "n08.tar"),
        ("empty", "n09.tar"),
        ("truncated", "n11.tar"),
        ("compressed", "n12.tar.GZ"),
    }
    index = open_pictures(folders)
    assert index.classes == ["n01", "n02", "n06", "n08", "n10", "n11"]
    assert report.samples == len(index) == 12 + 1 + 2 + 1
    said = "16 pictures of 6 classes, 3 tars, 1 compressed, 1 duplicate, 4 empty, 1 link, 1 outside, 1 truncated"
    assert said in str(report)


def test_who_trains_hears_of_faults(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folders / "n03").mkdir()
    open_pictures(folders)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "12 pictures of 3 classes, 0 tars, 1 empty (sam-ds data index lists them)" in line
    caplog.clear()
    open_pictures(folders)
    assert not caplog.records


def test_users_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no data folder .*nowhere: give a folder of pictures"):
        open_pictures(tmp_path / "nowhere")
    for name in CLASSES:
        (tmp_path / "set" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"no picture in .*set \(found: 3 empty\): give a folder of pictures"):
        open_pictures(tmp_path / "set")
    write(tmp_path / "set", {"n01/1.jpg": jpeg(1)})
    with pytest.raises(UserError, match="has a single picture: give at least 2"):
        open_picture_splits(tmp_path / "set")


def test_splits(folders: Path, tmp_path: Path) -> None:
    train, val = open_picture_splits(folders)
    assert (len(train), len(val)) == (11, 1) and train.classes == val.classes
    held_out = {Path(val.name(0)).name}
    for layout in LAYOUTS:
        _, other = open_picture_splits(layout(tmp_path / layout.__name__))
        assert {Path(other.name(0)).name} == held_out
    both = tmp_path / "both"
    shutil.copytree(folders, both / "train", ignore=shutil.ignore_patterns(".*"))
    write(both / "val", {"n10/1.jpg": jpeg(70), "n02/1.jpg": jpeg(71)})
    for train, val in (open_picture_splits(both), open_picture_splits(both / "train", val=both / "val")):
        assert (len(train), len(val)) == (12, 2)
        assert [val.label(i) for i in range(2)] == [1, 2] and val.classes == list(CLASSES)  # as the training counts
        need_classes(train, val)


def test_classes_that_are_needed(folders: Path, tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", {f"{i}.jpg": jpeg(i) for i in range(3)})
    one = write(tmp_path / "one", {f"cat/{i}.jpg": jpeg(i) for i in range(3)})
    others = write(tmp_path / "others", {f"x{i}/1.jpg": jpeg(i) for i in range(5)})
    some = write(tmp_path / "some", {**files(), "loose.jpg": jpeg(50)})
    for train, val, message in [
        (plain, plain, "plain has no classes: give a folder or a tar for each of at least 2 classes"),
        (one, one, "one has one class, cat: give a folder"),
        (folders, others, r"others has 5 classes that .*folders has not: x0, x1, x2, …$"),
        (folders, plain, "3 pictures of .*plain are in no class: put them in folders"),
        (some, folders, "1 pictures of .*some are in no class"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            need_classes(*open_picture_splits(train, val=val))
        assert "\n" not in str(caught.value)
    train, val = open_picture_splits(folders, val=others)  # without need of classes it is no mistake
    assert {val.label(i) for i in range(5)} == {NO_CLASS}


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "valid", "extra"), ("test", "validation")])
def test_parts_of_a_set_are_no_classes(folders: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    parted = write(tmp_path / "parted", {f"{part}/{name}": jpeg(1) for part in names for name in files()})
    message = rf"parted has parts of a set where classes should be \(.*\b{names[1]}\b.*\): call them train and val, or"
    for data, val in ((parted, None), (parted, folders), (folders, parted)):
        with pytest.raises(UserError, match=message) as caught:
            need_classes(*open_picture_splits(data, val=val))
        assert "\n" not in str(caught.value)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    vehicles = write(tmp_path, {f"{name}/{i}.jpg": jpeg(i) for name in ("bus", "car", "train") for i in range(2)})
    need_classes(*open_picture_splits(vehicles))


def test_an_index_that_came_with_the_set(folders: Path, tmp_path: Path) -> None:
    """It names nothing but the set's own files and classes."""
    (tmp_path / "x.jpg").write_bytes(b"secret")
    open_pictures(folders)
    home = folders / ".sam_ds_index"
    header = json.loads((home / "pictures.json").read_text())
    for change in ({"classes": [1, 2, 3]}, {"classes": 7}, {"shards": ["../x.tar"]}, {"table": "../../x.npy"}):
        (home / "pictures.json").write_text(json.dumps(header | change))
        assert open_pictures(folders).classes == list(CLASSES)
    table = np.load(home / header["table"])
    table["name"][0], table["shard"][1], table["label"][2], table["label"][3] = b"../x.jpg", 7, 3, -2
    np.save(home / header["table"], table)
    index = open_pictures(folders)
    for sample, reason in enumerate(("leads out of the folder", *["its row of the index is damaged"] * 3)):
        with pytest.raises(BadSampleError, match=reason):
            PictureReader(index).read(sample)
    assert index.unlabelled() == 2


def test_which_kind_a_folder_is_of(loose: Path, folders: Path, tmp_path: Path) -> None:
    pack(tmp_path / "masks" / "sa_000000.tar", {"./sa_1.json": b"{}", "./sa_1.jpg": jpeg(1)})
    pack(tmp_path / "tars" / "n01.tar", {"1.JPEG": jpeg(1)})
    _webdataset(tmp_path / "web")
    (tmp_path / "empty").mkdir()
    others = [tmp_path / name for name in ("tars", "web", "empty")]
    assert [has_pairs(path) for path in (loose, tmp_path / "masks", folders, *others)] == [True, True, *[False] * 4]
