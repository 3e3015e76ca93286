"""COCO's format: what is read, what a view shows of boxes, and what is wrong with a set."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from sam_ds.config.errors import UserError
from sam_ds.config.schema import DataConfig, EvalConfig, Recipe, TransformConfig
from sam_ds.data import reader
from sam_ds.data.annotated import eval_stream, train_stream
from sam_ds.data.boxes import BoxMaker
from sam_ds.data.coco import open_coco, open_coco_splits
from sam_ds.data.sampler import Share
from sam_ds.types import BoxBatch
from tests.data.photos import encode
from tests.downstream import CATEGORY, make_coco, pictures_of

SIDE = 64
JITTER = TransformConfig(flip=0.5, scale_jitter=(0.5, 2.0), brightness=0.2)


@pytest.fixture
def coco(drawn: Path, tmp_path: Path) -> Path:
    return make_coco(pictures_of(drawn / "train"), pictures_of(drawn / "val"), tmp_path / "coco")


def change(folder: Path, how: Callable[[dict[str, Any]], object], name: str = "train2017") -> Path:
    """Change a JSON in place."""
    path = folder / "annotations" / f"instances_{name}.json"
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))
    return path


def test_a_set_is_read_with_its_gaps(coco: Path) -> None:
    def spread(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": 90, "name": "last"}, {"id": 7, "name": "first"}, {"id": 13, "name": "none"}]
        content["annotations"][0]["category_id"] = 90
        content["annotations"][1]["iscrowd"] = 1
        content["annotations"][2]["bbox"][2] = 0.0  # COCO has a few such
        content["images"].reverse()

    marks = json.loads((coco / "annotations" / "instances_train2017.json").read_text())["annotations"]
    change(coco, spread)
    found = open_coco(coco, "train")
    assert found.categories == (7, 13, 90)
    assert found.names == ("first", "none", "last")
    assert found.picture_ids.tolist() == list(range(1, 13))  # in the order of their numbers
    assert len(found.boxes) == len(marks) - 2
    boxes, labels = found.boxes_of(0)
    own = [mark for mark in marks[3:] if mark["image_id"] == 1]
    np.testing.assert_array_equal(boxes, [marks[0]["bbox"], *(mark["bbox"] for mark in own)])
    assert labels.tolist() == [2] + [0] * len(own)


def test_the_fingerprint_is_of_names_and_boxes(coco: Path, tmp_path: Path) -> None:
    before = open_coco(coco, "train").fingerprint()
    moved = coco.rename(tmp_path / "elsewhere")
    assert open_coco(moved, "train").fingerprint() == before
    change(moved, lambda content: content["annotations"][0]["bbox"].__setitem__(0, 1.5))
    assert open_coco(moved, "train").fingerprint() != before


def test_a_name_need_not_be_utf_8(coco: Path) -> None:
    before, name = open_coco(coco, "train"), os.fsdecode(b"\xe9t\xe9.jpg")
    first = int(before.picture_ids[0])
    Path(before.name(0)).rename(before.root / name)
    change(coco, lambda c: [row.update(file_name=name) for row in c["images"] if row["id"] == first])
    pictures = open_coco(coco, "train")
    assert pictures.files[0] == name and pictures.fingerprint() != before.fingerprint()
    loaded = BoxMaker(pictures, DataConfig(workers=0), SIDE).for_evaluation([0])
    assert loaded.batch is not None and loaded.batch.images.any() and not loaded.bad


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda c: c.pop("categories"), "must have the lists images, annotations, categories"),
        (lambda c: c["images"][3].pop("file_name"), "images[3] is not as COCO's: KeyError 'file_name'"),
        (lambda c: c["images"][3].update(width=0), "images[3] is not as COCO's: ValueError a size of 0x"),
        (lambda c: c["annotations"][2].update(bbox=[1, 2, 3]), "annotations[2] is not as COCO's"),
        (lambda c: c["annotations"][2].update(category_id=8), "has category_id 8, and there is no such category"),
        (lambda c: c["annotations"][2].update(image_id=99), "has image_id 99, and there is no such image"),
        (lambda c: c["images"].append(c["images"][0]), "two entries with the same image id"),
        (lambda c: c["images"].clear(), "has no image"),
    ],
)
def test_what_is_wrong_with_a_json_is_one_line(coco: Path, how: Callable[[Any], object], words: str) -> None:
    path = change(coco, how)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        open_coco(coco, "train")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_laid_out_as_coco(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*instances_train\*\.json"):
        open_coco(tmp_path / "nothing", "train")
    (coco / "annotations" / "instances_train2014.json").write_text("{}")
    with pytest.raises(UserError, match="there are 2 of"):
        open_coco(coco, "train")
    (coco / "val2017").rename(coco / "moved")
    with pytest.raises(UserError, match=r"no folder .*val2017 with the pictures"):
        open_coco(coco, "val")
    (coco / "annotations" / "instances_val2017.json").write_text('{"images": [')
    (coco / "moved").rename(coco / "val2017")
    with pytest.raises(UserError, match="is damaged"):
        open_coco(coco, "val")


def test_other_categories_to_evaluate_on_are_refused(coco: Path) -> None:
    change(coco, lambda c: c["categories"].append({"id": 9, "name": "more"}), "val2017")
    with pytest.raises(UserError, match=r"other categories \(2\) than .* \(1\)"):
        open_coco_splits(coco)


def batches(folder: Path, workers: int, rank: int = 0, world: int = 1) -> list[BoxBatch]:
    """Twelve pictures of the stream, a rank's part of them."""
    recipe = Recipe("test", task="detect_objects", data=DataConfig(workers=workers, transforms=JITTER))
    pictures = open_coco(folder, "train")
    stream = train_stream(
        BoxMaker(pictures, recipe.data, SIDE, seed=1), recipe, Share(4 // world, 1, rank, world), None
    )
    steps = stream.steps(0)
    taken = [batch for _ in range(3) for batch in next(steps)]
    steps.close()
    return taken


def by_position(some: list[BoxBatch]) -> dict[int, tuple[int, int, list[list[float]]]]:
    """Of every picture its sample, the sum of its pixels, and its boxes."""
    found = {}
    for batch in some:
        boxes = batch.boxes.split(batch.counts.tolist())
        for place, own in enumerate(boxes):
            found[int(batch.positions[place])] = (
                int(batch.sample_ids[place]),
                int(batch.images[place].sum()),
                own.tolist(),
            )
    return found


def test_the_stream_is_the_same_for_any_number_of_workers_and_ranks(coco: Path) -> None:
    alone = by_position(batches(coco, 0))
    assert sorted(alone) == list(range(12))
    assert by_position(batches(coco, 2)) == alone
    assert by_position(batches(coco, 0, 0, 2) + batches(coco, 1, 1, 2)) == alone


def test_boxes_frame_the_same_pixels_in_every_view(tmp_path: Path) -> None:
    """A white rectangle on black is where its box says, whatever was flipped, scaled and cut off."""
    (tmp_path / "train2017").mkdir(parents=True)
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[20:50, 10:40] = 255
    Image.fromarray(pixels).save(tmp_path / "train2017" / "a.jpg", quality=95)
    (tmp_path / "annotations").mkdir()
    content = {
        "images": [{"id": 4, "file_name": "a.jpg", "height": 60, "width": 80}],
        "annotations": [{"id": 0, "image_id": 4, "category_id": CATEGORY, "bbox": [10, 20, 30, 30]}],
        "categories": [{"id": CATEGORY, "name": "white"}],
    }
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    transforms = dataclasses.replace(JITTER, brightness=0.0)
    maker = BoxMaker(open_coco(tmp_path, "train"), DataConfig(transforms=transforms), SIDE, seed=3)
    seen = 0
    for batch in (maker.for_training([position]).batch for position in range(20)):
        assert batch is not None
        white = (batch.images[0].float().mean(0) > 128).nonzero()  # rows and columns
        if not len(batch.boxes):
            assert not len(white)
            continue
        (top, left), (bottom, right) = white.min(0).values.tolist(), white.max(0).values.tolist()
        found = np.array([left, top, right + 1, bottom + 1])
        np.testing.assert_allclose(batch.boxes[0].numpy(), found, atol=1.0)
        seen += 1
    assert seen > 10


def shown(folder: Path, content: bytes, exact: bool = True) -> Tensor:
    """uint8 [3, S, S]: what an evaluation shows of the first picture, were this its file."""
    pictures = open_coco(folder, "train")
    first = Path(pictures.name(0))
    first.unlink()  # it is a link
    first.write_bytes(content)
    side = min(pictures.sizes[0].tolist()) // 4  # a JPEG's decoder may shrink
    loaded = BoxMaker(pictures, DataConfig(workers=0, exact=exact), side).for_evaluation([0])
    assert loaded.batch is not None and not loaded.bad
    return loaded.batch.images[0]


@pytest.mark.parametrize("fast", [True, False])
def test_pictures_may_be_of_any_format_and_have_bytes_too_many(
    coco: Path, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr(reader, "simplejpeg", None)
    content = Path(open_coco(coco, "train").name(0)).read_bytes()
    expected = shown(coco, content)
    for exact in (True, False):  # what has no scaled decode is shown exactly
        assert shown(coco, encode(Image.open(io.BytesIO(content)), "PNG"), exact).equal(expected)
        assert shown(coco, content[:-2] + bytes(100) + content[-2:], exact).equal(expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_boxes_are_of_the_pixels_as_they_are_stored(coco: Path, kind: str) -> None:
    picture, tag = Image.open(open_coco(coco, "train").name(0)), Image.Exif()
    picture.load()
    tag[0x0112] = 6  # a quarter turn
    stored, turned = encode(picture, kind), encode(picture, kind, exif=tag)
    assert stored != turned
    assert shown(coco, turned).equal(shown(coco, stored))
    if kind == "JPEG":  # with bytes too many it is Pillow that decodes it
        assert shown(coco, turned[:-2] + bytes(100) + turned[-2:]).equal(shown(coco, stored))


def test_a_picture_that_is_not_there_is_left_out(coco: Path, tmp_path: Path) -> None:
    (coco / "train2017" / "sa_3.jpg").unlink()
    change(coco, lambda c: c["images"][4].update(height=10))
    recipe = Recipe("test", data=DataConfig(workers=0))
    maker = BoxMaker(open_coco(coco, "train"), recipe.data, SIDE)
    record = tmp_path / "quarantine.jsonl"
    stream = train_stream(maker, recipe, Share(12, 1, 0, 1), record)
    (batch,) = next(stream.steps(0))
    reasons = {Path(row["file"]).name: row["reason"] for row in map(json.loads, record.read_text().splitlines())}
    assert len(reasons) == 2
    assert "No such file" in reasons["sa_3.jpg"]
    assert any("x10" in reason for reason in reasons.values())
    assert len(batch) == 12


def test_an_evaluation_shows_every_picture_once_and_marks_what_fills_up(coco: Path) -> None:
    (coco / "train2017" / "sa_3.jpg").unlink()
    pictures, eval = open_coco(coco, "train"), EvalConfig(batch=2)
    maker = BoxMaker(pictures, DataConfig(workers=0), SIDE)
    seen = [eval_stream(maker, eval, rank, 5) for rank in range(5)]
    assert {len(stream) for stream in seen} == {2}
    samples = [int(sample) for stream in seen for batch in stream for sample in batch.sample_ids]
    real = sorted(sample for sample in samples if sample >= 0)
    missing = [sample for sample in range(12) if pictures.files[sample] == "sa_3.jpg"]
    assert sorted(real + missing) == list(range(12))
