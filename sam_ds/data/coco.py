"""COCO's own format of pictures with boxes: one JSON for a set, and a folder with its pictures.

A folder of data is laid out as COCO ships it: ``annotations/instances_NAME.json`` beside a folder NAME of pictures, for
a NAME that begins with train and one that begins with val. The categories' numbers may have gaps, as COCO's have:
classes are counted from 0 in the order of the numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam_ds.config.errors import UserError

_PREFIX = "instances_"


@dataclass(frozen=True)
class CocoSet:
    """The pictures of one set in the order of their numbers, and their boxes without those of crowds."""

    root: Path  # the pictures' folder
    annotations: Path  # the JSON
    files: tuple[str, ...]  # N of them, below root
    picture_ids: npt.NDArray[np.int64]  # [N]     as the JSON has them
    sizes: npt.NDArray[np.int64]  # [N, 2]  height and width
    offsets: npt.NDArray[np.int64]  # [N + 1]  picture n owns boxes[offsets[n]:offsets[n + 1]]
    boxes: npt.NDArray[np.float64]  # [O, 4]  left, top, width, height in pixels; (0, 0) is the picture's corner
    labels: npt.NDArray[np.int64]  # [O]     classes from 0
    categories: tuple[int, ...]  # number of each class in the JSON, ascending
    names: tuple[str, ...]  # of the classes

    def __len__(self) -> int:
        return len(self.files)

    def name(self, sample: int) -> str:
        """Where the picture is, for messages."""
        return str(self.root / self.files[sample])

    def boxes_of(self, sample: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """A picture's boxes [O, 4] and classes [O]."""
        own = slice(self.offsets[sample], self.offsets[sample + 1])
        return self.boxes[own], self.labels[own]

    @cached_property
    def _digest(self) -> str:
        names = "\n".join(self.files).encode(errors="surrogatepass")  # surrogates: of a name that is no UTF-8
        digest = hashlib.sha256(names)
        for array in (self.picture_ids, self.sizes, self.offsets, self.boxes, self.labels):
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest()[:16]

    def fingerprint(self) -> str:
        """Equal for the same pictures with the same boxes, wherever they lie; the pictures are not read."""
        return self._digest


def open_coco_splits(
    path: str | Path, val: str | Path | None = None, tell: Callable[[str], None] | None = None
) -> tuple[CocoSet, CocoSet]:
    """The set to train on and the one to evaluate on, which ``val``, another folder laid out alike, may bring.

    Raises:
        UserError: as ``open_coco``, or the two have other categories.
    """
    train, held_out = open_coco(path, "train", tell), open_coco(val or path, "val", tell)
    if train.categories != held_out.categories:
        raise UserError(
            f"{held_out.annotations} has other categories ({len(held_out.categories)}) than {train.annotations} "
            f"({len(train.categories)}): both must list the same"
        )
    return train, held_out


def open_coco(path: str | Path, split: str, tell: Callable[[str], None] | None = None) -> CocoSet:
    """Read the set of a folder whose name begins with ``split``.

    Raises:
        UserError: there is none, or more than one, or its JSON is damaged or not COCO's; or its pictures are not there.
    """
    root = Path(path).expanduser()
    wanted = root / "annotations" / f"{_PREFIX}{split}*.json"
    found = sorted((root / "annotations").glob(wanted.name))
    if len(found) != 1:
        problem = "there is no" if not found else f"there are {len(found)} of"
        raise UserError(f"{problem} {wanted}: give a folder laid out as COCO is, with one {split} set")
    pictures = root / found[0].stem.removeprefix(_PREFIX)
    if not pictures.is_dir():
        raise UserError(f"there is no folder {pictures} with the pictures of {found[0]}")
    if tell:
        tell(f"reading {found[0]}")
    return _parse(_load(found[0]), found[0], pictures)


def _load(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(raw, dict) or not all(isinstance(raw.get(name), list) for name in _TABLES):
        raise UserError(f"{path} is not COCO's: it must have the lists {', '.join(_TABLES)}")
    return raw


_TABLES = ("images", "annotations", "categories")


def _parse(raw: dict[str, Any], path: Path, root: Path) -> CocoSet:
    categories = _rows(raw, "categories", path, lambda row: (_number(row["id"]), str(row["name"])))
    pictures = _rows(raw, "images", path, _picture)
    marks = _rows(raw, "annotations", path, _mark)
    for what, ids in (("category", [c[0] for c in categories]), ("image", [p[0] for p in pictures])):
        if not ids:
            raise UserError(f"{path} has no {what}")
        if len(set(ids)) < len(ids):
            raise UserError(f"{path} has two entries with the same {what} id")
    categories.sort()
    pictures.sort()
    table = np.array([(mark[0], mark[1]) for mark in marks if not mark[2]], np.int64).reshape(-1, 2)
    boxes = np.array([mark[3] for mark in marks if not mark[2]], np.float64).reshape(-1, 4)
    picture = _places(table[:, 0], [p[0] for p in pictures], "image_id", "image", path)
    labels = _places(table[:, 1], [c[0] for c in categories], "category_id", "category", path)
    keep = np.isfinite(boxes).all(1) & (boxes[:, 2:] > 0).all(1)  # COCO itself has a few without an area
    order = np.argsort(picture[keep], kind="stable")
    counts = np.bincount(picture[keep], minlength=len(pictures))
    return CocoSet(
        root=root,
        annotations=path,
        files=tuple(p[1] for p in pictures),
        picture_ids=np.array([p[0] for p in pictures], np.int64),
        sizes=np.array([p[2:] for p in pictures], np.int64),
        offsets=np.concatenate([[0], counts.cumsum()]).astype(np.int64),
        boxes=boxes[keep][order],
        labels=labels[keep][order],
        categories=tuple(c[0] for c in categories),
        names=tuple(c[1] for c in categories),
    )


def _picture(row: Any) -> tuple[int, str, int, int]:
    height, width = int(row["height"]), int(row["width"])
    if height < 1 or width < 1:
        raise ValueError(f"a size of {width}x{height}")
    return _number(row["id"]), str(row["file_name"]), _number(height), _number(width)


def _mark(row: Any) -> tuple[int, int, bool, tuple[float, ...]]:
    left, top, width, height = map(float, row["bbox"])
    float(row.get("area", 0.0))  # which COCO's evaluation will look at
    picture, category = _number(row["image_id"]), _number(row["category_id"])
    return picture, category, bool(row.get("iscrowd", 0)), (left, top, width, height)


def _number(value: Any) -> int:
    number = int(value)
    if abs(number) >= 1 << 53:  # as a float it is another one, and results are tables of floats
        raise ValueError(f"a number of {number}")
    return number


def _rows(raw: dict[str, Any], name: str, path: Path, read: Callable[[Any], tuple[Any, ...]]) -> list[Any]:
    rows: list[Any] = []
    try:
        rows.extend(map(read, raw[name]))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{name}[{len(rows)}]"
        raise UserError(f"{path}: {what} is not as COCO's: {type(error).__name__} {error}") from error
    return rows


def _places(
    numbers: npt.NDArray[np.int64], known: list[int], field: str, what: str, path: Path
) -> npt.NDArray[np.int64]:
    """The place of each number among the known ones, which ascend."""
    table = np.array(known, np.int64)
    places: npt.NDArray[np.int64] = np.searchsorted(table, numbers).clip(max=len(table) - 1)
    wrong = np.flatnonzero(table[places] != numbers)
    if len(wrong):
        raise UserError(f"{path}: an annotation has {field} {numbers[wrong[0]]}, and there is no such {what}")
    return places
