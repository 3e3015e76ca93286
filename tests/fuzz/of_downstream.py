"""Annotations of others: COCO's JSON, to train on and to evaluate by, and label maps."""

from __future__ import annotations

import io
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from sam_ds.config.errors import UserError
from sam_ds.config.schema import DataConfig
from sam_ds.data.boxes import BoxMaker
from sam_ds.data.class_maps import decode_labels
from sam_ds.data.coco import open_coco
from sam_ds.data.files import BadSampleError
from sam_ds.evaluation.coco import score_boxes, score_masks, true_masks
from sam_ds.types import UNLABELLED
from tests.fuzz.mutate import json_case, other_bytes

_SIDE, _CLASSES = 16, 3


class CocoJson:
    """A set of two pictures, which is read, shown and scored."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "annotations" / "instances_val2017.json"
        for name in ("annotations", "val2017"):
            (folder / name).mkdir(exist_ok=True)
        for name in ("a.jpg", "b.jpg"):
            Image.fromarray(np.zeros((12, 20, 3), np.uint8)).save(folder / "val2017" / name)
        box = {"category_id": 90, "bbox": [2, 3, 8.5, 6], "area": 51.0, "iscrowd": 0}
        polygons = [[2, 3, 8, 3, 8, 9]]
        runs, string = ({"size": [12, 20], "counts": counts} for counts in ([27, 6, 207], "k06_6"))
        self._content: dict[str, Any] = {
            "images": [
                {"id": n, "file_name": f"{name}.jpg", "height": 12, "width": 20} for n, name in ((4, "a"), (9, "b"))
            ],
            "annotations": [
                box | {"id": 0, "image_id": 4, "segmentation": polygons},
                box | {"id": 7, "image_id": 9, "segmentation": runs, "iscrowd": 1},
                box | {"id": 8, "image_id": 4, "segmentation": string},
            ],
            "categories": [{"id": 90, "name": "last"}, {"id": 1, "name": "first"}],
        }

    def draw(self, rng: Random) -> bytes:
        return json_case(rng, [self._content])

    def check(self, case: bytes) -> bool:
        self._path.write_bytes(case)
        try:
            pictures = open_coco(self._folder, "val")
            samples = range(min(2, len(pictures)))
            batch = BoxMaker(pictures, DataConfig(workers=0), _SIDE).for_evaluation(list(samples)).batch
            assert batch is not None and int(batch.counts.sum()) == len(batch.boxes) == len(batch.labels)
            assert not len(batch.boxes) or 0 <= batch.boxes.min() <= batch.boxes.max() <= _SIDE
            found = np.array([[float(pictures.picture_ids[0]), 2, 3, 8.5, 6, 0.5, float(pictures.categories[0])]])
            figures = score_boxes(pictures, samples, found)
            assert all(0 <= value <= 1 for value in figures.values())
            truth = true_masks(pictures)
            mask = truth.dataset["annotations"][0]
            result = {key: mask[key] for key in ("image_id", "category_id", "segmentation")} | {"score": 0.5}
            figures = score_masks(pictures, truth, samples, [result])
            assert all(0 <= value <= 1 for value in figures.values())
        except UserError as error:
            assert str(error).strip()
            return False
        return True


class LabelMap:
    """PNGs of numbers, and of other things."""

    def __init__(self) -> None:
        self._files = []
        for mode in ("L", "P", "1", "RGB", "I;16", "LA"):
            numbers = np.random.default_rng(0).integers(0, _CLASSES + 2, (9, 14), np.uint8)
            buffer = io.BytesIO()
            picture = Image.fromarray(numbers.astype(np.uint16) if mode == "I;16" else numbers % (_CLASSES + 1))
            (picture if mode == "I;16" else picture.convert(mode)).save(buffer, "png")
            self._files.append(buffer.getvalue())

    def draw(self, rng: Random) -> bytes:
        content = self._files[rng.randrange(len(self._files))]
        return other_bytes(rng, content) if rng.random() < 0.7 else content

    def check(self, case: bytes) -> bool:
        try:
            labels = decode_labels(case, _CLASSES)
        except BadSampleError as error:
            assert str(error).strip() and "\n" not in str(error)
            return False
        assert labels.dtype == np.uint8 and labels.ndim == 2
        return bool(((labels < _CLASSES) | (labels == UNLABELLED)).all())
