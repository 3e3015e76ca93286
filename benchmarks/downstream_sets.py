"""Sets in COCO's and in ADE20K's layout, made of pictures in SA-1B's format: those hold masks and no classes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

CATEGORY = 7  # of all objects: not 1, as categories of COCO have gaps


def pictures_of(folder: Path) -> list[Path]:
    """The .json of every picture of a folder, those of smaller pictures first, so that a few are quickly learnt."""
    sizes = {path: json.loads(path.read_text())["image"] for path in sorted(folder.glob("*.json"))}
    return sorted(sizes, key=lambda path: sizes[path]["width"] * sizes[path]["height"])


def make_coco(train: Sequence[Path], val: Sequence[Path], target: Path) -> Path:
    """A folder in COCO's layout with one category; pictures are linked."""
    for name, chosen in (("train2017", train), ("val2017", val)):
        (target / name).mkdir(parents=True)
        images: list[dict[str, Any]] = []
        marks: list[dict[str, Any]] = []
        for number, path in enumerate(chosen, 1):
            info = json.loads(path.read_text())
            file = f"{path.stem}.jpg"
            os.symlink(path.with_suffix(".jpg").resolve(), target / name / file)
            size = {side: info["image"][side] for side in ("height", "width")}
            images.append({"id": number, "file_name": file} | size)
            for one in info["annotations"]:
                mark = {"id": len(marks) + 1, "image_id": number, "category_id": CATEGORY, "iscrowd": 0}
                marks.append(mark | {part: one[part] for part in ("bbox", "area", "segmentation")})
        (target / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": marks, "categories": [{"id": CATEGORY, "name": "object"}]}
        (target / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    return target


def make_class_maps(train: Sequence[Path], val: Sequence[Path], target: Path) -> Path:
    """A folder in ADE20K's layout with two classes, background (1) and object (2); pictures are linked."""
    for name, chosen in (("training", train), ("validation", val)):
        for part in ("images", "annotations"):
            (target / part / name).mkdir(parents=True)
        for path in chosen:
            os.symlink(path.with_suffix(".jpg").resolve(), target / "images" / name / f"{path.stem}.jpg")
            info = json.loads(path.read_text())
            labels = np.ones((info["image"]["height"], info["image"]["width"]), np.uint8)
            for one in info["annotations"]:
                labels[rle.decode(one["segmentation"]).astype(bool)] = 2
            Image.fromarray(labels).save(target / "annotations" / name / f"{path.stem}.png")
    return target
