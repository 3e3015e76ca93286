"""Pictures with a class for every pixel, in ADE20K's format: a PNG of numbers beside every JPEG.

A folder of data has ``images/training``, ``images/validation`` and the same below ``annotations``: ``x.png`` there has
the size of ``x.jpg`` (or .jpeg, .JPG, …), and every pixel's number, 0 for none and else its class, counted from 1.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sam_ds.config.errors import UserError
from sam_ds.config.schema import DataConfig
from sam_ds.data.annotated import Annotated, Maker, Sample, picture_of
from sam_ds.data.files import BadSampleError
from sam_ds.data.transforms import View
from sam_ds.types import UNLABELLED, LabelBatch

_EXTENSIONS = (".jpg", ".jpeg")  # of pictures, in any case
_MOST_BYTES = 64 << 20  # of a label map

Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ClassMapSet:
    """The pictures of one set, in the order of their names."""

    root: Path  # the folder of data
    split: str  # training or validation
    files: tuple[str, ...]  # of the pictures

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, sample: int) -> str:
        return f"images/{self.split}/{self.files[sample]}"

    def label_map(self, sample: int) -> str:
        return f"annotations/{self.split}/{_stem(self.files[sample])}.png"

    def name(self, sample: int) -> str:
        """Where the picture is, for messages."""
        return str(self.root / self.picture(sample))

    def fingerprint(self) -> str:
        """Equal for pictures of the same names, wherever they lie; they are not read."""
        # Of a name that is no UTF-8, its bytes stand as surrogates.
        return hashlib.sha256("\n".join(map(_stem, self.files)).encode(errors="surrogatepass")).hexdigest()[:16]


def open_class_map_splits(
    path: str | Path, val: str | Path | None = None, tell: Callable[[str], None] | None = None
) -> tuple[ClassMapSet, ClassMapSet]:
    """The set to train on and the one to evaluate on, which ``val``, another folder laid out alike, may bring.

    Raises:
        UserError: a folder is missing or holds no picture, or a picture has no label map, or two have one together.
    """
    return _open(Path(path), "training", tell), _open(Path(val or path), "validation", tell)


def _open(root: Path, split: str, tell: Callable[[str], None] | None) -> ClassMapSet:
    root = root.expanduser()
    if tell:
        tell(f"listing {root / 'images' / split}")
    files = sorted((n for n in _list(root / "images" / split) if n.lower().endswith(_EXTENSIONS)), key=_stem)
    maps = set(_list(root / "annotations" / split))
    if not files:
        raise UserError(f"{root / 'images' / split} holds no .jpg: give a folder laid out as ADE20K is")
    for one, other in itertools.pairwise(files):
        if _stem(one) == _stem(other):
            raise UserError(f"{root / 'images' / split} has {one} and {other}, which would share a label map: keep one")
    alone = [name for name in files if f"{_stem(name)}.png" not in maps]
    if alone:
        raise UserError(
            f"{len(alone)} pictures of {root / 'images' / split} have no label map: "
            f"there is no {root / 'annotations' / split / _stem(alone[0])}.png"
        )
    return ClassMapSet(root, split, tuple(files))


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _list(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}): give a folder laid out as ADE20K is") from error


def decode_labels(png: bytes, num_classes: int) -> Labels:
    """uint8 [h, w]: every pixel's class from 0, or UNLABELLED.

    Raises:
        BadSampleError: it is no PNG of numbers, or has a class that is not there.
    """
    try:
        # Of no other format, whatever the file is called: some start programs, and a JPEG's numbers are not exact.
        with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
            if picture.mode not in ("L", "P"):
                raise BadSampleError(f"its label map is of mode {picture.mode}, not a number of 8 bits a pixel (L, P)")
            numbers = np.array(picture)
    except UnidentifiedImageError as error:
        raise BadSampleError("its label map is no PNG") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, BadSampleError):
            raise
        raise BadSampleError(f"its label map is damaged: {error}") from error
    if numbers.max() > num_classes:
        raise BadSampleError(f"its label map has the number {numbers.max()}, and classes.num_classes={num_classes}")
    labels: Labels = numbers - np.uint8(1)  # 0 becomes UNLABELLED
    return labels


def look_up(labels: Labels, view: View) -> Labels:
    """uint8 [S, S]: the class of the pixel that each of the input's pixels is in; UNLABELLED beyond the picture."""
    height, width = labels.shape
    matrix, middle = view.to_source(), np.arange(view.side) + 0.5
    # The source pixel is where the input pixel's centre falls, as in ops.rasterize.
    columns = np.floor(matrix[0, 0] * middle + matrix[0, 1] * middle[:, None] + matrix[0, 2]).astype(np.int64)
    rows = np.floor(matrix[1, 0] * middle + matrix[1, 1] * middle[:, None] + matrix[1, 2]).astype(np.int64)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    pixel = np.arange(view.side)
    inside &= (pixel < view.valid_size[1]) & (pixel < view.valid_size[0])[:, None]
    seen: Labels = labels[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    seen[~inside] = UNLABELLED
    return seen


class LabelMaker(Maker[Labels, LabelBatch]):
    """Makes batches of a set of ADE20K's."""

    def __init__(self, pictures: ClassMapSet, num_classes: int, data: DataConfig, side: int, seed: int = 0) -> None:
        super().__init__(pictures, data, side, seed)
        self.pictures, self.num_classes = pictures, num_classes

    def labels(self, sample: int) -> Labels:
        """uint8 [h, w]: the classes of a picture's own pixels. Raises BadSampleError."""
        return decode_labels(self.file(self.pictures.label_map(sample), "label map", _MOST_BYTES), self.num_classes)

    def read(self, sample: int) -> Annotated[Labels]:
        labels = self.labels(sample)
        height, width = labels.shape
        return Annotated(picture_of(self, self.pictures.picture(sample)), (height, width), labels)

    def seen(self, truth: Labels, view: View) -> Labels:
        return look_up(truth, view)

    def nothing(self) -> Labels:
        return np.full((self.side, self.side), UNLABELLED, np.uint8)

    def collate(self, images: Tensor, samples: list[Sample[Labels]]) -> LabelBatch:
        return LabelBatch(
            images=images,
            valid_sizes=torch.tensor([s.view.valid_size for s in samples], dtype=torch.int32),
            labels=torch.from_numpy(np.stack([s.truth for s in samples])),
            sample_ids=torch.tensor([s.sample for s in samples]),
            positions=torch.tensor([s.position for s in samples]),
        )
