"""Average precision by COCO's evaluation, and the classes of pixels, against what is known or counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from torch import Tensor, nn

from sam_ds.config.errors import UserError
from sam_ds.config.schema import DataConfig, EvalConfig
from sam_ds.data.annotated import eval_stream
from sam_ds.data.boxes import BoxMaker
from sam_ds.data.coco import CocoSet, open_coco
from sam_ds.data.synthetic import SyntheticConfig, synthesize
from sam_ds.evaluation import box_masks, class_maps, coco
from sam_ds.evaluation.class_maps import OneClass, PixelSums, classes_at
from sam_ds.modeling.detector import Detections
from sam_ds.types import UNLABELLED, LabelBatch, Prediction, Prompts
from tests.downstream import make_coco, pictures_of

SIDE, CPU = 128, torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> CocoSet:
    root = tmp_path_factory.mktemp("sets")
    synthesize(root / "drawn", SyntheticConfig(train=6, val=2, size=(90, 120), objects=(3, 6)))
    drawn = [pictures_of(root / "drawn" / part) for part in ("train", "val")]
    return open_coco(make_coco(drawn[1], drawn[0], root / "coco"), "val")


class Oracle(nn.Module):
    """Finds the true boxes of the next batch, with a class and a score for each."""

    def __init__(self, batches: list[Any], shift: float = 0.0) -> None:
        super().__init__()
        self.batches, self.shift = iter(batches), shift

    def forward(self, images: Tensor) -> Detections:
        batch = next(self.batches)
        logits, boxes = torch.full((len(batch), 1, 20, 1), -9.0), torch.full((len(batch), 1, 20, 4), 0.5)
        for picture, own in enumerate(batch.boxes.split(batch.counts.tolist())):
            low, high = own[:, :2] / SIDE, own[:, 2:] / SIDE
            boxes[picture, 0, : len(own)] = torch.cat([(low + high) / 2 + self.shift, high - low], dim=1)
            logits[picture, 0, : len(own), 0] = 5.0
        return Detections(logits, boxes)


def find(pictures: CocoSet, rank: int = 0, world: int = 1, shift: float = 0.0) -> coco.Found:
    stream = eval_stream(BoxMaker(pictures, DataConfig(workers=0), SIDE), EvalConfig(batch=2), rank, world)
    return coco.find_boxes(Oracle(list(stream), shift), stream, pictures, CPU, None)


def test_true_boxes_are_all_right(pictures: CocoSet) -> None:
    found = find(pictures)
    assert found.samples == list(range(6))
    figures = coco.score_boxes(pictures, found.samples, found.rows)
    assert figures["ap"] == pytest.approx(1.0)
    assert figures["ar100"] == pytest.approx(1.0)
    assert 0.3 < coco.score_boxes(pictures, found.samples, find(pictures, shift=0.01).rows)["ap"] < 0.9


def test_ranks_add_up_without_counting_twice(pictures: CocoSet) -> None:
    """Four ranks, of which two have a picture less and fill up with a black one."""
    parts = [find(pictures, rank, 4) for rank in range(4)]
    assert sorted(sample for part in parts for sample in part.samples) == list(range(6))
    rows = np.concatenate([part.rows for part in parts])
    alone = find(pictures).rows
    np.testing.assert_allclose(rows[np.lexsort(rows.T)], alone[np.lexsort(alone.T)], atol=1e-9)


def test_what_is_found_in_no_picture_scores_nothing(pictures: CocoSet) -> None:
    assert coco.score_boxes(pictures, range(6), np.zeros((0, 7)))["ap"] == 0.0


def test_only_the_pictures_that_were_looked_at_count(pictures: CocoSet) -> None:
    found = find(pictures)
    own = found.rows[found.rows[:, 0] == pictures.picture_ids[0]]
    assert coco.score_boxes(pictures, [0], own)["ap"] == pytest.approx(1.0)
    assert coco.score_boxes(pictures, range(6), own)["ap"] < 0.9


def test_crowds_are_neither_found_nor_missed_and_number_0_is_an_object(pictures: CocoSet, tmp_path: Path) -> None:
    """COCOeval takes the number 0 of a matched object for no match; files of others' making number from 0."""
    content = json.loads(pictures.annotations.read_text())
    for number, mark in enumerate(content["annotations"]):
        mark["id"] = number
        del mark["area"], mark["iscrowd"]
    content["annotations"][1]["iscrowd"] = 1
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").symlink_to(pictures.root)
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    changed = open_coco(tmp_path, "val")
    assert len(changed.boxes) == len(pictures.boxes) - 1
    found = find(changed)
    assert coco.score_boxes(changed, found.samples, found.rows)["ap"] == pytest.approx(1.0)


def test_pictures_without_boxes_are_a_user_s_mistake(pictures: CocoSet, tmp_path: Path) -> None:
    content = json.loads(pictures.annotations.read_text())
    content["annotations"] = []
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").symlink_to(pictures.root)
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="has nothing to find"):
        coco.score_boxes(open_coco(tmp_path, "val"), range(6), find(pictures).rows)


class BoxFiller(nn.Module):
    """A SAM whose mask of a box is the whole box."""

    logits_stride = 2

    config = SimpleNamespace(image_size=SIDE)

    def normalize(self, images: Tensor, valid_sizes: Tensor) -> Tensor:
        return images.float()

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, embeddings: Tensor, picture: Tensor, prompts: Prompts, multimask: bool) -> Prediction:
        middle = 2 * torch.arange(SIDE // 2) + 0.5  # of a cell of logits, in pixels of the input
        (left, top), (right, bottom) = (corner.T[..., None, None] for corner in prompts.points.unbind(1))
        inside = (middle >= left) & (middle <= right) & (middle[:, None] >= top) & (middle[:, None] <= bottom)
        return Prediction(torch.where(inside, 10.0, -10.0)[:, None], torch.full((len(inside), 1), 0.5))


@pytest.fixture
def rectangles(pictures: CocoSet, tmp_path: Path) -> CocoSet:
    """The same set, with every mask its whole box."""
    content = json.loads(pictures.annotations.read_text())
    for mark in content["annotations"]:
        x, y, width, height = mark["bbox"]
        mark["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        mark["area"] = width * height
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").symlink_to(pictures.root)
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return open_coco(tmp_path, "val")


def test_masks_of_boxes_lie_where_the_boxes_are(rectangles: CocoSet, tmp_path: Path) -> None:
    stream = eval_stream(BoxMaker(rectangles, DataConfig(workers=0), SIDE), EvalConfig(batch=2), 0, 1)
    marks = box_masks.true_marks(rectangles)
    samples, results = box_masks.masks_of_boxes(BoxFiller(), stream, rectangles, marks, CPU)
    assert len(results) == len(rectangles.boxes)
    assert {result["score"] for result in results} == {0.5}
    truth = coco.true_masks(rectangles)
    figures = coco.score_masks(rectangles, truth, samples, results)
    assert figures["ap50"] > 0.95
    assert figures["ap"] > 0.6  # a cell of the logits is two pixels wide

    found = find(rectangles)
    (tmp_path / "boxes.json").write_text(json.dumps(coco.as_results(found.rows)))
    marks = box_masks.found_marks(tmp_path / "boxes.json", rectangles)
    samples, results = box_masks.masks_of_boxes(BoxFiller(), stream, rectangles, marks, CPU)
    assert len(results) == len(found.rows)
    assert coco.score_masks(rectangles, truth, samples, results)["ap50"] > 0.95


def with_segmentation(pictures: CocoSet, folder: Path, place: int, segmentation: object) -> CocoSet:
    """The set in another folder, with another segmentation of an annotation."""
    content = json.loads(pictures.annotations.read_text())
    content["annotations"][place]["segmentation"] = segmentation
    (folder / "other" / "annotations").mkdir(parents=True)
    (folder / "other" / "val2017").symlink_to(pictures.root)
    (folder / "other" / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return open_coco(folder / "other", "val")


def test_a_mask_is_the_same_in_every_form(rectangles: CocoSet, tmp_path: Path) -> None:
    mark = coco.true_masks(rectangles).dataset["annotations"][3]
    height, width = mark["segmentation"]["size"]
    pixels = rle.decode(mark["segmentation"])
    assert pixels.shape == (height, width) and 0 < pixels.sum() == pytest.approx(mark["area"], rel=0.2)
    ends = np.flatnonzero(np.diff(pixels.T.ravel(), prepend=0, append=2))  # columns one after another
    counts = {"size": [height, width], "counts": np.diff(ends, prepend=0).tolist()}
    string = {"size": [height, width], "counts": mark["segmentation"]["counts"].decode()}
    polygons = [*json.loads(rectangles.annotations.read_text())["annotations"][3]["segmentation"], [1, 2, 9, 9]]
    for place, form in enumerate((counts, string, polygons)):
        changed = with_segmentation(rectangles, tmp_path / str(place), 3, form)
        assert coco.true_masks(changed).dataset["annotations"][3]["segmentation"] == mark["segmentation"]


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        (None, "ValueError it is empty"),
        ([], "ValueError it is empty"),
        ([[]], "no polygon has three corners"),
        ([[1, 2]], "no polygon has three corners"),
        ([[1, 2, 3, 4, 5, 6, 7]], "ValueError cannot reshape"),
        ([1, 2, 3, 4, 5, 6], "ValueError cannot reshape"),
        ([[1, 2, 3, 4, 5, float("nan")]], "a corner is not within 1,000,000 pixels"),
        ([[1e9, 2, 3, 4, 5, 6]], "a corner is not within 1,000,000 pixels"),
        ({"size": [120, 92], "counts": [5, 3]}, "ValueError its RLE covers another number of pixels"),
        ({"size": [9, 12], "counts": [108]}, r"is for a picture of \[9, 12\], not \["),
        ({"size": [120, 92], "counts": "zzz"}, "its RLE holds a character that is none"),
        ({"counts": "abc"}, "KeyError 'size'"),
    ],
)
def test_a_wrong_mask_is_told_before_any_is_looked_for(
    rectangles: CocoSet, tmp_path: Path, segmentation: object, words: str
) -> None:
    """To pycocotools, some of these end the process, and some never end."""
    changed = with_segmentation(rectangles, tmp_path, 3, segmentation)
    with pytest.raises(UserError, match=words) as caught:
        coco.true_masks(changed)
    start = f"{changed.annotations}: the segmentation of annotations[3] is not as COCO's: "
    assert str(caught.value).startswith(start) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"), [("[{}]", "KeyError"), ("{", "holds no boxes"), (None, "cannot be read")]
)
def test_a_file_that_holds_no_boxes(pictures: CocoSet, tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(UserError, match=words):
        box_masks.found_marks(tmp_path / "boxes.json", pictures)


def test_the_mean_iou_is_that_of_a_count_by_hand() -> None:
    truth = np.array([[0, 0, 1, 1], [2, 2, UNLABELLED, UNLABELLED]], np.uint8)
    found = np.array([[0, 1, 1, 1], [2, 0, 3, 0]], np.uint8)
    metrics = PixelSums.zero(5).plus(truth, found).metrics()
    # 0: one of three pixels that either has; 1: two of three; 2: one of two; 3 and 4 are in no pixel with a class.
    assert metrics["miou"] == pytest.approx((1 / 3 + 2 / 3 + 1 / 2) / 3)
    assert metrics["accuracy"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert metrics["pixel_accuracy"] == pytest.approx(4 / 6)
    assert metrics["pixels"] == 6


def test_no_pixel_with_a_class_is_a_user_s_mistake() -> None:
    nothing = np.full((2, 2), UNLABELLED, np.uint8)
    with pytest.raises(UserError, match="no pixel has a class"):
        PixelSums.zero(3).plus(nothing, nothing * 0).metrics()


def test_classes_are_told_at_the_picture_s_own_size() -> None:
    """Of many classes in parts, the same as of all at once; and the padding is not looked at."""
    logits = torch.randn(40, 16, 16)
    found = classes_at(logits, 64, (48, 64), (30, 40))
    grown = nn.functional.interpolate(logits[None], size=64, mode="bilinear")[:, :, :48]
    wanted = nn.functional.interpolate(grown, size=(30, 40), mode="bilinear")[0].argmax(0)
    assert (found == wanted.numpy()).mean() > 0.999


def test_every_picture_is_measured_once_and_black_ones_are_not() -> None:
    batch = LabelBatch(
        images=torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        valid_sizes=torch.full((2, 2), 8, dtype=torch.int32),
        labels=torch.zeros(2, 8, 8, dtype=torch.uint8),
        sample_ids=torch.tensor([5, -1]),
        positions=torch.tensor([5, -1]),
    )
    truth = np.array([[0, 1], [1, 1]], np.uint8)
    asked: list[int] = []

    def truth_of(sample: int) -> np.ndarray:
        asked.append(sample)
        return truth

    sums = class_maps.evaluate(OneClass(2, 1), [batch], truth_of, 2, CPU)
    assert asked == [5]
    assert sums.metrics()["pixel_accuracy"] == 0.75
