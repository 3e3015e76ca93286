"""Which pictures of a set without train/ and val/ are held out."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam_ds.data.imagenet import PictureIndex, open_picture_splits
from sam_ds.data.index import Index, open_splits
from tests.data.photos import pack, write


def _pairs(numbers: range) -> dict[str, bytes]:
    return {f"./sa_{number}.{kind}": b"" for number in numbers for kind in ("jpg", "json")}


def _numbers(index: Index | PictureIndex) -> list[int]:
    return [int(Path(index.name(sample)).stem.removeprefix("sa_")) for sample in range(len(index))]


def test_neighbours_are_not_held_out_together(tmp_path: Path) -> None:
    """Pictures of one shoot or one slide often follow each other."""
    pack(tmp_path / "sa_000000.tar", _pairs(range(2000)))
    train, val = open_splits(tmp_path)
    assert (len(train), len(val)) == (1980, 20)
    assert len({number // 10 for number in _numbers(val)}) > 16  # by chance, 19 of 20


def _tars(root: Path) -> None:
    for shard in range(3):
        pack(root / f"sa_{shard:06}.tar", _pairs(range(100 * shard, 100 * shard + 100)))


def _tars_with_folders(root: Path) -> None:
    for shard in range(3):
        pairs = _pairs(range(100 * shard, 100 * shard + 100))
        pack(root / f"{shard:06}.tar", {f"sa_{shard:06}/{name}": content for name, content in pairs.items()})


def _folders(root: Path) -> None:
    for shard in range(3):
        write(root / f"sa_{shard:06}", _pairs(range(100 * shard, 100 * shard + 100)))


def _one_folder(root: Path) -> None:
    write(root, _pairs(range(300)))


@pytest.mark.parametrize("layout", [_tars, _tars_with_folders, _folders, _one_folder])
def test_pretraining_does_not_see_what_sam_is_evaluated_on(tmp_path: Path, layout, monkeypatch) -> None:
    """Whether or not folders are taken for classes, and where SAM, of whose pictures fewer are held out, stops."""
    layout(tmp_path)
    for most in (500, 2):
        monkeypatch.setattr("sam_ds.data.index._MOST_HELD_OUT", most)
        held_out, (train, val) = _numbers(open_splits(tmp_path)[1]), open_picture_splits(tmp_path)
        assert len(held_out) == min(3, most) and len(val) == 3
        assert set(held_out) <= set(_numbers(val)) and not set(held_out) & set(_numbers(train))


@pytest.mark.parametrize("opened", [open_splits, open_picture_splits])
def test_of_two_sets_one_half_each_is_taken(tmp_path: Path, opened) -> None:
    """As of COCO's and ADE20K's: a set's val/ is not trained on because another one is evaluated on."""
    for name, first in (("one", 0), ("other", 100)):
        for half, numbers in (("train", range(first, first + 30)), ("val", range(first + 30, first + 40))):
            write(tmp_path / name / half, _pairs(numbers))
    write(tmp_path / "plain", _pairs(range(200, 220)))
    for data, val, wanted in [
        ("one", None, (range(30), range(30, 40))),
        ("one", "other", (range(30), range(130, 140))),
        ("one", "plain", (range(30), range(200, 220))),
        ("plain", "one", (range(200, 220), range(30, 40))),
        ("one/train", "one/val", (range(30), range(30, 40))),
    ]:
        halves = opened(tmp_path / data, val=tmp_path / val if val else None)
        assert [set(_numbers(half)) for half in halves] == [set(numbers) for numbers in wanted]


def _class_folders(root: Path, pictures: dict[str, bytes]) -> None:
    write(root, pictures)


def _class_tars(root: Path, pictures: dict[str, bytes]) -> None:
    for name in {path.partition("/")[0] for path in pictures}:
        inside = {path.partition("/")[2]: content for path, content in pictures.items() if path.startswith(f"{name}/")}
        pack(root / f"{name}.tar", inside)


def _shards(root: Path, pictures: dict[str, bytes]) -> None:
    for shard in range(5):
        pack(root / f"{shard:06}.tar", dict(list(pictures.items())[shard::5]))


def _named(index: PictureIndex) -> set[tuple[str, str]]:
    """Class and name of every picture."""
    return {(index.classes[index.label(sample)], Path(index.name(sample)).name) for sample in range(len(index))}


def test_of_one_name_all_classes_have_their_chance(tmp_path: Path) -> None:
    """Of 20 classes of 0.jpg to 79.jpg, 16 are held out in every layout, and not those of the first classes."""
    classes = [f"n{number:02}" for number in range(20)]
    pictures = {f"{name}/{number}.jpg": b"" for name in classes for number in range(80)}
    found = []
    for layout in (_class_folders, _class_tars, _shards):
        layout(tmp_path / layout.__name__, pictures)
        train, val = open_picture_splits(tmp_path / layout.__name__)
        assert (len(train), len(val)) == (1584, 16) and train.classes == classes
        found.append(_named(val))
        assert not found[-1] & _named(train)
    assert found[0] == found[1] == found[2]
    held_out = {its_class for its_class, _ in found[0]}
    assert len(held_out) == 16 and held_out != set(classes[:16])


def test_of_a_name_that_all_have_the_folder_chooses(tmp_path: Path) -> None:
    """A class for one task and none for the other, and yet both hold out the same."""
    write(tmp_path, {f"scene_{number:03}/view.{kind}": b"" for number in range(300) for kind in ("jpg", "json")})
    _, masks = open_splits(tmp_path)
    _, pictures = open_picture_splits(tmp_path)
    scenes = [sorted(Path(half.name(sample)).parent.name for sample in range(3)) for half in (masks, pictures)]
    assert len(masks) == len(pictures) == 3
    assert scenes[0] == scenes[1] != ["scene_000", "scene_001", "scene_002"]
