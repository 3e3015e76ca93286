"""ADE20K's format: label maps, what a view shows of them, and what is wrong with a set."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sam_ds.config.errors import UserError
from sam_ds.config.schema import DataConfig, Recipe, TransformConfig
from sam_ds.data.annotated import train_stream
from sam_ds.data.class_maps import LabelMaker, decode_labels, open_class_map_splits
from sam_ds.data.files import BadSampleError
from sam_ds.data.sampler import Share
from sam_ds.types import UNLABELLED
from tests.data.photos import encode
from tests.downstream import make_class_maps, pictures_of

SIDE = 64


@pytest.fixture
def maps(drawn: Path, tmp_path: Path) -> Path:
    return make_class_maps(pictures_of(drawn / "train"), pictures_of(drawn / "val"), tmp_path / "maps")


def png(numbers: np.ndarray) -> bytes:
    return encode(Image.fromarray(numbers), "PNG")


def test_numbers_are_classes_from_one_and_nothing_at_zero() -> None:
    labels = decode_labels(png(np.array([[0, 1], [2, 150]], np.uint8)), 150)
    assert labels.tolist() == [[UNLABELLED, 0], [1, 149]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (png(np.full((2, 2), 4, np.uint8)), "has the number 4, and classes.num_classes=3"),
        (png(np.zeros((2, 2, 3), np.uint8)), "is of mode RGB, not a number of 8 bits a pixel"),
        (png(np.zeros((2, 2), np.uint16)), "is of mode I;16, not"),
        (png(np.zeros((2, 2), bool)), "is of mode 1, not"),
        (b"no picture", "its label map is no PNG"),
        (encode(Image.new("L", (2, 2)), "JPEG"), "is no PNG"),
        (encode(Image.new("L", (2, 2)), "EPS"), "is no PNG"),
        (png(np.zeros((64, 64), np.uint8))[:60], "is damaged"),
    ],
)
def test_what_is_wrong_with_a_label_map(content: bytes, words: str) -> None:
    with pytest.raises(BadSampleError, match=re.escape(words)):
        decode_labels(content, 3)


def test_a_folder_that_is_not_laid_out_as_ade20k(maps: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training cannot be listed \(No such file"):
        open_class_map_splits(tmp_path / "nothing")
    (maps / "annotations" / "training" / "sa_3.png").unlink()
    with pytest.raises(UserError, match=r"1 pictures of .* have no label map: there is no .*sa_3\.png"):
        open_class_map_splits(maps)
    for path in (maps / "images" / "training").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"holds no \.jpg"):
        open_class_map_splits(maps)


def test_a_jpeg_s_extension_may_be_any(maps: Path) -> None:
    before, folder = open_class_map_splits(maps)[0], maps / "images" / "training"
    for name, other in (("sa_3.jpg", "sa_3.JPG"), ("sa_4.jpg", "sa_4.jpeg")):
        (folder / name).rename(folder / other)
    pictures = open_class_map_splits(maps)[0]
    assert {"sa_3.JPG", "sa_4.jpeg", "sa_5.jpg"} < set(pictures.files)
    assert len(pictures) == len(before) and pictures.fingerprint() == before.fingerprint()
    loaded = LabelMaker(pictures, 2, DataConfig(workers=0), SIDE).for_evaluation(list(range(len(pictures))))
    assert not loaded.bad
    (folder / "sa_4.jpg").symlink_to(folder / "sa_4.jpeg")
    with pytest.raises(UserError, match=r"has sa_4\.jpe?g and sa_4\.jpe?g, which would share a label map"):
        open_class_map_splits(maps)


def test_a_name_need_not_be_utf_8(maps: Path) -> None:
    before = open_class_map_splits(maps)[0].fingerprint()
    for path in ("images/training/{}.jpg", "annotations/training/{}.png"):
        (maps / path.format("sa_3")).rename(maps / path.format(os.fsdecode(b"\xe9t\xe9")))
    pictures = open_class_map_splits(maps)[0]
    assert pictures.fingerprint() != before
    loaded = LabelMaker(pictures, 2, DataConfig(workers=0), SIDE).for_evaluation(list(range(len(pictures))))
    assert not loaded.bad


def test_labels_lie_on_the_pixels_that_they_are_of_in_every_view(tmp_path: Path) -> None:
    """Each class has a grey of its own, so pixels say which class they are."""
    for part in ("images", "annotations"):
        for name in ("training", "validation"):
            (tmp_path / part / name).mkdir(parents=True)
    classes = np.kron(np.arange(1, 5, dtype=np.uint8).reshape(2, 2), np.ones((30, 40), np.uint8))
    Image.fromarray(classes * 60).convert("RGB").save(tmp_path / "images/training/a.jpg", quality=100)
    Image.fromarray(classes).save(tmp_path / "annotations/training/a.png")
    for path in ("images/validation/b.jpg", "annotations/validation/b.png"):
        (tmp_path / path).touch()
    transforms = TransformConfig(flip=0.5, scale_jitter=(0.5, 3.0), rotate=20.0)
    pictures, _ = open_class_map_splits(tmp_path)
    maker = LabelMaker(pictures, 4, DataConfig(transforms=transforms), SIDE, seed=1)
    for position in range(20):
        batch = maker.for_training([position]).batch
        assert batch is not None
        labels, grey = batch.labels[0], batch.images[0].float().mean(0)
        known = labels != UNLABELLED
        told = (grey / 60).round() - 1
        assert known.any()
        assert (told[known] == labels[known]).float().mean() > 0.9  # all but those between two classes
        assert ((grey > 10) == known).float().mean() > 0.95  # all but the picture's very edge


def test_a_bad_label_map_is_left_out(maps: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 96), 9, np.uint8)).save(maps / "annotations/training/sa_3.png")
    Image.fromarray(np.ones((10, 10), np.uint8)).save(maps / "annotations/training/sa_4.png")
    recipe = Recipe("test", data=DataConfig(workers=0))
    maker = LabelMaker(open_class_map_splits(maps)[0], 2, recipe.data, SIDE)
    record = tmp_path / "quarantine.jsonl"
    (batch,) = next(train_stream(maker, recipe, Share(12, 1, 0, 1), record).steps(0))
    reasons = {Path(row["file"]).stem: row["reason"] for row in map(json.loads, record.read_text().splitlines())}
    assert reasons["sa_3"] == "its label map has the number 9, and classes.num_classes=2"
    assert "10x10" in reasons["sa_4"]
    assert len(reasons) == 2
    assert set(torch.unique(batch.labels).tolist()) == {0, 1, UNLABELLED}
