"""Sets of whole pictures: folders of a class each, tars of a class each, tars that hold either, or just pictures.

A picture's class is the first folder of its path, in a tar as well as outside (ImageNet's train/, and tars made of
it). Pictures that lie in a tar without a folder are of the class that the .cls beside them says (WebDataset's shards),
or else that the tar is named after, n01440764.tar say (ImageNet-21K as it ships), unless the tars are numbered: a name
that ends in four digits or more, after nothing or a mark, is a shard's (sa_000000.tar). Files of other kinds are passed
over: the .json beside a picture of SA-1B's, say. Classes are numbered by their sorted names, or if all of these are
numbers, by those. A link to a folder is not followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam_ds.config.errors import UserError
from sam_ds.data.files import BadSampleError
from sam_ds.data.halves import open_halves
from sam_ds.data.scan import LOOSE, Finding, Place, is_picture, without_repeats
from sam_ds.data.table import Kind, Table, open_table

NO_CLASS = -1
_NUMBERED = re.compile(r"(.*[^0-9A-Za-z])?\d{4,}")
_MOST_HELD_OUT = 50_000  # pictures; ImageNet evaluates on as many
_FEW = 3  # names that a message lists
# Folders that part a set. One alone may well be a class: COCO's and CIFAR-100's trains are called so.
_PARTS = ("train", "training", "val", "valid", "validation", "test", "testing")


def row_dtype(name_bytes: int) -> np.dtype[np.void]:
    """Of a picture in the index."""
    return np.dtype(
        [
            ("name", f"S{name_bytes}"),  # relative to the folder or the tar
            ("shard", "<i4"),  # which tar, or LOOSE
            ("label", "<i4"),  # its class, or NO_CLASS
            ("size", "<i8"),  # bytes; -1: the whole file
            ("offset", "<i8"),
        ]
    )


class Pictures:
    """Finds pictures and their classes."""

    reads: tuple[str, ...] = (".cls",)

    def __init__(self) -> None:
        self._classes: dict[str, int] = {}  # in the order that they are come to
        self._folders: dict[str, bool] = {}  # those of the first level, and whether there is a picture in them
        self._unlabelled = 0

    def rows(self, place: Place, findings: list[Finding]) -> npt.NDArray[np.void]:
        """A row a picture, its label the place of its class in ``_classes``."""
        own_class = None if place.shard == LOOSE else _class_of_tar(place.name)
        rows = []
        for name, offset, size in without_repeats(place, is_picture, findings):
            folder, inside, _ = name.partition("/")
            said = place.texts.get(f"{os.path.splitext(name)[0]}.cls", b"").decode("utf-8", "replace").strip()
            picture_class = folder if inside else said or own_class
            label = NO_CLASS
            if picture_class is not None:
                label = self._classes.setdefault(picture_class, len(self._classes))
            rows.append((os.fsencode(name), place.shard, label, size, offset))
        first, inside, _ = place.folder.partition("/")
        if first:
            self._folders[first] = self._folders.get(first, False) or bool(rows)
        if place.shard != LOOSE and not rows:
            findings.append(Finding("empty", place.name, "there is no picture in it"))
        return np.array(rows, row_dtype(max((len(row[0]) for row in rows), default=1)))

    def finish(self, samples: npt.NDArray[np.void], shards: list[str], findings: list[Finding]) -> npt.NDArray[np.void]:
        """The same rows, their labels the places of the sorted classes."""
        empty = [folder for folder, filled in self._folders.items() if not filled]
        findings += [Finding("empty", folder, "there is no picture in it") for folder in empty]
        place = {name: label for label, name in enumerate(self._sorted())}
        final = np.array([*(place[name] for name in self._classes), NO_CLASS], np.int32)
        samples["label"] = final[samples["label"]]  # NO_CLASS, -1, finds itself at the end
        self._unlabelled = int((samples["label"] == NO_CLASS).sum())
        return samples

    def what(self) -> str:
        if not self._classes:
            return "pictures without classes"
        rest = f" ({self._unlabelled} of them in none)" if self._unlabelled else ""
        return f"pictures of {len(self._classes)} classes{rest}"

    def facts(self) -> dict[str, Any]:
        return {"classes": self._sorted()}

    def _sorted(self) -> list[str]:
        numbers = all(name.isascii() and name.isdigit() for name in self._classes)
        return sorted(self._classes, key=lambda name: (len(name) if numbers else 0, name))


def _class_of_tar(tar: str) -> str | None:
    """The class of pictures that lie in no folder within a tar."""
    folder, inside, _ = tar.partition("/")
    stem = os.path.splitext(os.path.basename(tar))[0]
    if not _NUMBERED.fullmatch(stem):
        return stem
    return folder if inside else None


class PictureIndex(Table):
    """A set, or a part of one. A row's fields: name, shard, label, offset, size."""

    kind = Kind(
        header="pictures.json",
        table="pictures",
        name="name",
        extensions=True,
        row_dtype=row_dtype,
        keeps=("shards", "classes"),
        gather=Pictures,
        what="picture",
        needed="a folder of pictures, of a folder or a tar a class, or of tars of pictures",
    )

    def __init__(
        self, root: Path, table: Path, header: dict[str, Any], rows: npt.NDArray[np.int64] | None = None
    ) -> None:
        super().__init__(root, table, header, rows)
        self.found: list[str] = header["classes"]  # the set's own
        self.classes: list[str] = header.get("known_as", self.found)  # those that labels count
        if not all(isinstance(name, str) for name in self.found):
            raise TypeError("the classes of an index are names")
        numbers = {name: label for label, name in enumerate(self.classes)}
        self._labels = [numbers.get(name, NO_CLASS) for name in self.found]

    def known_as(self, classes: list[str]) -> PictureIndex:
        """The same pictures with labels that count these classes; pictures of others have none."""
        return PictureIndex(self.root, self.table, {**self.header, "known_as": classes}, self.rows)

    def name(self, sample: int) -> str:
        """Where the picture is, for messages: ``folder/n01440764/1.JPEG`` or ``n01440764.tar/1.JPEG``."""
        return self.place(sample)[2]

    def path(self, sample: int) -> str:
        """As of every table; a class is a folder, whatever says it."""
        name, label = os.path.splitext(super().path(sample))[0], int(self[sample]["label"])
        return name if "/" in name or not 0 <= label < len(self.found) else f"{self.found[label]}/{name}"

    def label(self, sample: int) -> int:
        """Its class's place in ``classes``, or NO_CLASS.

        Raises:
            BadSampleError: the index is damaged.
        """
        label = int(self[sample]["label"])
        if not NO_CLASS <= label < len(self._labels):
            raise BadSampleError("its row of the index is damaged: make it anew with sam-ds data index")
        return label if label == NO_CLASS else self._labels[label]

    def labels(self) -> npt.NDArray[np.int64]:
        """int64 [n]: ``label`` of every picture; a damaged row has none."""
        rows = slice(None) if self.rows is None else self.rows
        known = np.array([NO_CLASS, *self._labels, NO_CLASS], np.int64)
        return known.take(self.samples["label"][rows] + 1, mode="clip")

    def unlabelled(self) -> int:
        """How many pictures are in none of ``classes``."""
        return int((self.labels() == NO_CLASS).sum())


def open_pictures(path: str | Path, tell: Callable[[str], None] | None = None) -> PictureIndex:
    """``open_table`` of whole pictures."""
    return open_table(PictureIndex, path, tell)


def open_picture_splits(
    path: str | Path, tell: Callable[[str], None] | None = None, val: str | Path | None = None
) -> tuple[PictureIndex, PictureIndex]:
    """The pictures to train on and to evaluate on, their labels counting the classes that are trained.

    They are ``open_halves`` of ``path`` and ``val``.
    """
    train, rest = open_halves(PictureIndex, path, _MOST_HELD_OUT, tell, val)
    return train, rest.known_as(train.classes)


def need_classes(train: PictureIndex, val: PictureIndex) -> None:
    """What a task that learns classes asks of ``open_picture_splits``.

    Raises:
        UserError: there are not two classes, or a picture has none of them, or they are parts of the set.
    """
    for index in (train, val):
        parts = [name for name in index.found if name.lower() in _PARTS]
        if len(parts) > 1:
            raise UserError(
                f"{index.root} has parts of a set where classes should be ({', '.join(parts)}): call them train and "
                f"val, or give one as --data and another as --val"
            )
    if len(train.classes) < 2:
        found = f"one class, {train.classes[0]}" if train.classes else "no classes"
        raise UserError(f"{train.root} has {found}: give a folder or a tar for each of at least 2 classes")
    strange = sorted(set(val.found) - set(train.classes))
    if strange:
        few = ", ".join(strange[:_FEW]) + (", …" if len(strange) > _FEW else "")
        raise UserError(f"{val.root} has {len(strange)} classes that {train.root} has not: {few}")
    for index in (train, val):
        if count := index.unlabelled():
            raise UserError(f"{count} pictures of {index.root} are in no class: put them in folders named after theirs")
