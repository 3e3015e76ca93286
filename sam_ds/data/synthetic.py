"""A set of drawn scenes in SA-1B's own format, for trying everything without downloading anything.

The same settings give the same files, to the byte with the same versions of numpy and Pillow.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from sam_ds.config.errors import UserError
from sam_ds.data.scenes import Painter, Scene

_MARK = ".synthetic.json"  # the settings a finished set was made with
_QUALITY = 92
_SMALLEST = 64  # visible pixels; less is too little to be a mask


@dataclass(frozen=True)
class SyntheticConfig:
    train: int = 400  # pictures
    val: int = 60
    seed: int = 0
    size: tuple[int, int] = (256, 512)  # range of both sides, pixels
    objects: tuple[int, int] = (25, 50)  # range of their number; some may end up hidden
    tar: bool = False  # pack tars as SA-1B ships them, instead of loose files
    pictures_per_tar: int = 100

    def check(self) -> None:
        """
        Raises:
            UserError: a setting is out of range.
        """
        if self.train < 1 or self.val < 1:
            raise UserError(f"a set needs pictures to train on and to evaluate on, not {self.train} and {self.val}")
        if not 32 <= self.size[0] <= self.size[1] <= 640:
            raise UserError(f"sides must be a range within 32 to 640 pixels, not {self.size[0]} to {self.size[1]}")
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise UserError(f"objects must be a range from 1 up, not {self.objects[0]} to {self.objects[1]}")
        if self.pictures_per_tar < 1:
            raise UserError(f"a tar needs at least 1 picture, not {self.pictures_per_tar}")


def synthesize(folder: str | Path, config: SyntheticConfig) -> bool:
    """Write train/ and val/ below ``folder``.

    Returns:
        False if the very set is there already.

    Raises:
        UserError: a setting is out of range, or the folder holds something else or cannot be written.
    """
    config.check()
    try:
        return _synthesize(Path(folder), config)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}): give another folder") from None


def _synthesize(root: Path, config: SyntheticConfig) -> bool:
    settings = json.loads(json.dumps(asdict(config)))
    mark = root / _MARK
    if mark.exists():
        if json.loads(mark.read_text()) == settings:
            return False
        raise UserError(f"{root} holds a set made with other settings: remove it or give another folder")
    if root.exists() and any(root.iterdir()):
        raise UserError(f"{root} is not empty: give a new folder")
    painter = Painter()
    for split, first, count in (("train", 0, config.train), ("val", config.train, config.val)):
        (root / split).mkdir(parents=True, exist_ok=True)
        pictures = (_picture(painter, config, image_id) for image_id in range(first + 1, first + count + 1))
        _write(root / split, pictures, config)
    mark.write_text(json.dumps(settings))
    return True


def _picture(painter: Painter, config: SyntheticConfig, image_id: int) -> tuple[str, bytes, bytes]:
    """Name, JPEG and JSON of a picture."""
    rng = np.random.default_rng((config.seed, image_id))
    height, width = (int(side) for side in rng.integers(config.size[0], config.size[1] + 1, 2))
    scene = painter.paint(rng, (height, width), int(rng.integers(config.objects[0], config.objects[1] + 1)))
    name = f"sa_{image_id}"
    image = {"image_id": image_id, "width": width, "height": height, "file_name": f"{name}.jpg"}
    info = {"image": image, "annotations": describe(scene, image_id)}
    jpeg = io.BytesIO()
    Image.fromarray(scene.pixels).save(jpeg, "JPEG", quality=_QUALITY)
    return name, jpeg.getvalue(), json.dumps(info).encode()


def describe(scene: Scene, image_id: int) -> list[dict[str, Any]]:
    """SA-1B's annotations of the visible part of every shape."""
    height, width = scene.labels.shape
    areas = np.bincount(scene.labels.ravel())
    shapes = [k for k in range(1, len(areas)) if areas[k] >= _SMALLEST]
    masks = np.asfortranarray(scene.labels[..., None] == np.array(shapes, np.int32), dtype=np.uint8)  # [H, W, O]
    encoded = coco_mask.encode(masks)
    boxes = coco_mask.toBbox(encoded)
    result = []
    for number, (rle, box, shape) in enumerate(zip(encoded, boxes, shapes, strict=True)):
        left, top, box_width, box_height = (int(side) for side in box)
        rows, columns = np.nonzero(scene.labels[top : top + box_height, left : left + box_width] == shape)
        middle = len(rows) // 2
        result.append(
            {
                "id": image_id * 1000 + number,
                "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
                "bbox": box.tolist(),
                "area": int(areas[shape]),
                "predicted_iou": 1.0,
                "stability_score": 1.0,
                "crop_box": [0.0, 0.0, float(width), float(height)],
                "point_coords": [[float(left + columns[middle]), float(top + rows[middle])]],
            }
        )
    return result


def _write(folder: Path, pictures: Iterator[tuple[str, bytes, bytes]], config: SyntheticConfig) -> None:
    if config.tar:
        for number in itertools.count():
            some = list(itertools.islice(pictures, config.pictures_per_tar))
            if not some:
                return
            _write_tar(folder / f"sa_{number:06d}.tar", some)
    for name, jpeg, info in pictures:
        (folder / f"{name}.jpg").write_bytes(jpeg)
        (folder / f"{name}.json").write_bytes(info)


def _write_tar(path: Path, pictures: list[tuple[str, bytes, bytes]]) -> None:
    """Members are called ./sa_1.jpg and ./sa_1.json, side by side."""
    with tarfile.open(path, "w") as tar:
        for name, jpeg, info in pictures:
            for extension, content in (("jpg", jpeg), ("json", info)):
                member = tarfile.TarInfo(f"./{name}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
