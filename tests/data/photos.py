"""Sets of small pictures in classes, and what a loader makes of them, to be compared."""

from __future__ import annotations

import io
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from sam_ds.config.schema import DataConfig, Recipe, TransformConfig
from sam_ds.data.imagenet import PictureIndex, open_pictures
from sam_ds.data.picture_loader import PictureTrainLoader
from sam_ds.data.sampler import Share

SIDE = 32
CROPS = TransformConfig(flip=0.5, area=(0.2, 1.0), aspect=(0.75, 4 / 3), brightness=0.2, hue=0.1)
DATA = DataConfig(workers=0, transforms=CROPS)
CLASSES = ("n01", "n02", "n10")


def jpeg(number: int, size: tuple[int, int] = (40, 56)) -> bytes:
    """A picture of smooth noise; ``size`` is height and width."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (6, 7, 3), np.uint8))
    return encode(small.resize(size[::-1], Image.Resampling.BICUBIC), "JPEG", quality=90)


def encode(picture: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def files() -> dict[str, bytes]:
    """Four pictures of each of three classes, by path."""
    return {
        f"{name}/{name}_{i}.JPEG": jpeg(10 * place + i, (36 + 4 * i, 60 - 4 * i))
        for place, name in enumerate(CLASSES)
        for i in range(4)
    }


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def pack(path: Path, contents: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def train_loader(
    where: Path | PictureIndex, data: DataConfig = DATA, rank: int = 0, world: int = 1, record: Path | None = None
) -> PictureTrainLoader:
    index = where if isinstance(where, PictureIndex) else open_pictures(where)
    return PictureTrainLoader(index, Recipe("t", seed=5, data=data), SIDE, Share(4 // world, 2, rank, world), record)


def stream_of(loader: PictureTrainLoader, start: int, steps: int) -> dict[int, tuple[int, int, bytes]]:
    """By position in the stream: picture, class and pixels."""
    return {
        int(position): (int(sample), int(label), image.numpy().tobytes())
        for batches in islice(loader.steps(start), steps)
        for batch in batches
        for position, sample, label, image in zip(
            batch.positions, batch.sample_ids, batch.labels, batch.images, strict=True
        )
    }
