"""Pictures and their masks: COCO's RLE, SA-1B's JSON, JPEG bytes, and the whole way from both to a sample."""

from __future__ import annotations

import io
import itertools
import warnings
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from sam_ds.config.schema import DataConfig, TransformConfig
from sam_ds.data import reader, runs, samples
from sam_ds.data.index import Index
from tests.fuzz.mutate import json_case, junk, other_bytes

HEIGHT, WIDTH, SIDE = 20, 24, 16
_CHARACTERS = "".join(chr(48 + code) for code in range(64))

Masks = tuple[list[dict[str, Any]], tuple[int, int]]


def _rectangles(rng: Random, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, np.uint8, order="F")
    for _ in range(rng.randrange(4)):
        y, x = rng.randrange(size[0]), rng.randrange(size[1])
        mask[y : y + rng.randrange(1, size[0] + 1), x : x + rng.randrange(1, size[1] + 1)] ^= 1
    return mask


def _rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = coco_mask.encode(mask)
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def draw_masks(rng: Random) -> Masks:
    size = (rng.randrange(1, 40), rng.randrange(1, 40))
    masks = [_rle(_rectangles(rng, size)) for _ in range(rng.randrange(1, 4))]
    wrong = masks[rng.randrange(len(masks))]
    way = rng.randrange(8)
    if way < 3:
        text = other_bytes(rng, wrong["counts"].encode())
        wrong["counts"] = text.decode("latin-1") if way else text.decode("utf-8", "replace")
    elif way == 3:
        wrong["counts"] = "".join(rng.choice(_CHARACTERS) for _ in range(rng.randrange(12)))
    elif way == 4:
        lengths = np.diff(runs.parse([wrong], size)[0], prepend=0).tolist()
        lengths[rng.randrange(len(lengths))] = rng.choice(
            (-1, 0, 1, 2**31, 2**62, 2**63, 2**64, 10**30, 1.5, True, "1")
        )
        wrong["counts"] = lengths * rng.choice((1, 1, 2, 4))
    elif way == 5:
        wrong["counts"] = junk(rng)
    elif way == 6 and rng.random() < 0.5:
        lengths = np.diff(runs.parse([wrong], size)[0], prepend=0).tolist()
        wrong["counts"] = [2**62] * rng.choice((2, 4)) + lengths  # their sum in 64 bits is right
    elif way == 6:
        wrong["size"] = rng.choice(([size[1], size[0]], [size[0]], list(map(float, size)), "ab", [None, None], []))
    return masks, size


def check_masks(case: Masks) -> bool:
    """Compiled and plain parsing agree, and with pycocotools on what they accept."""
    masks, size = case
    whole, compiled = _parsed(masks, size), runs._runs_compiled
    runs._runs_compiled = None  # type: ignore[assignment]
    try:
        plain = _parsed(masks, size)
    finally:
        runs._runs_compiled = compiled
    if isinstance(whole, int) or isinstance(plain, int):
        assert whole == plain, f"{whole} and {plain}"
        return False
    for one, other in zip(whole, plain, strict=True):
        assert np.array_equal(one, other) and one.dtype == other.dtype
    check_runs(*whole, size[0] * size[1])
    for number, mask in enumerate(masks):
        ends = whole[0][whole[1][number] : whole[1][number + 1]]
        ours = (np.searchsorted(ends, np.arange(size[0] * size[1]), side="right") % 2).astype(np.uint8)
        rle = {"size": list(size), "counts": mask["counts"]}
        if not isinstance(mask["counts"], str):
            rle = coco_mask.frPyObjects(rle, *size)
        assert np.array_equal(coco_mask.decode(rle).flatten(order="F"), ours)
    return True


def _parsed(masks: list[dict[str, Any]], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray] | int:
    """What is parsed, or which mask is refused."""
    try:
        return runs.parse(masks, size)
    except runs.BadRunsError as error:
        assert error.reason
        return error.mask


def check_runs(ends: np.ndarray, offsets: np.ndarray, pixels: int) -> None:
    assert ends.dtype == np.int32 and offsets.dtype == np.int64 and offsets[0] == 0 and offsets[-1] == ends.size
    for first, stop in itertools.pairwise(offsets):
        own = ends[first:stop].astype(np.int64)
        assert own.size and own[0] >= 0 and (np.diff(own) >= 0).all() and own[-1] == pixels


class _Bytes(reader.Reader):
    """A reader of bytes that are at hand."""

    def __init__(self) -> None:
        self.parts = {"json": b"", "jpg": b""}
        super().__init__(_OneRow())

    def _bytes(self, row: np.void, part: str) -> bytes:
        return self.parts[part]


class _OneRow(Index):
    def __init__(self) -> None:
        self.root, self.rows, self.shards = Path("nowhere"), None, []
        self.samples = np.zeros(1, [("stem", "S4"), ("shard", "<i4")])


def _picture(rng: Random) -> bytes:
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


def _info(rng: Random) -> dict[str, Any]:
    """As SA-1B's, of a few objects."""
    annotations = []
    for number in range(rng.randrange(1, 4)):
        mask = _rectangles(rng, (HEIGHT, WIDTH))
        rle = coco_mask.encode(mask)
        annotations.append(
            {
                "id": number,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()},
                "bbox": coco_mask.toBbox(rle).tolist(),
                "area": int(mask.sum()),
                "predicted_iou": 0.9,
                "stability_score": 0.95,
            }
        )
    image = {"image_id": 1, "height": HEIGHT, "width": WIDTH, "file_name": "sa_1.jpg"}
    return {"image": image, "annotations": annotations}


class Record:
    """The JSON alone, down to the runs of the masks."""

    def __init__(self) -> None:
        self._reader = _Bytes()
        rng = Random(0)
        self._infos = [_info(rng) for _ in range(20)]

    def draw(self, rng: Random) -> bytes:
        return json_case(rng, self._infos)

    def check(self, case: bytes) -> bool:
        self._reader.parts["json"] = case
        try:
            raw = self._reader.read(0)
            masks = samples.usable_masks(raw, DataConfig())
            ends, offsets = samples.parse_runs(raw, masks.ids)
        except reader.BadSampleError as error:
            return _said(error)
        assert len(masks.ids) == len(masks.boxes) == len(masks.areas) > 0
        assert np.isfinite(masks.boxes).all() and np.isfinite(masks.areas).all()
        check_runs(ends, offsets, raw.size[0] * raw.size[1])
        return True


class Sample:
    """JPEG and JSON as a worker takes them, with random views."""

    def __init__(self) -> None:
        transforms = TransformConfig(flip=0.5, crop=(0.3, 1.0), object_crop=0.5, rotate=30, shear=10, brightness=0.2)
        self._reader = _Bytes()
        self._maker = samples.SampleMaker(
            self._reader.index, DataConfig(max_masks=2, transforms=transforms), SIDE, 0, self._reader
        )
        rng = Random(0)
        self._infos, self._jpegs = [_info(rng) for _ in range(20)], [_picture(rng) for _ in range(5)]

    def draw(self, rng: Random) -> tuple[bytes, bytes, int]:
        jpeg = self._jpegs[rng.randrange(len(self._jpegs))]
        if rng.random() < 0.1:
            jpeg = other_bytes(rng, jpeg)
        return json_case(rng, self._infos), jpeg, rng.randrange(1000)

    def check(self, case: tuple[bytes, bytes, int]) -> bool:
        self._reader.parts = {"json": case[0], "jpg": case[1]}
        image = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                sample = self._maker._training_sample(0, case[2], image)
        except reader.BadSampleError as error:
            return _said(error)
        assert 1 <= len(sample.mask_ids) <= 2 and sample.to_source.isfinite().all()
        assert all(1 <= side <= SIDE for side in sample.valid_size)
        check_runs(sample.ends, sample.offsets, sample.size[0] * sample.size[1])
        return True


class Jpeg:
    """Both decoders, whole and shrunk."""

    def __init__(self) -> None:
        rng = Random(0)
        self._jpegs = [_picture(rng) for _ in range(20)]

    def draw(self, rng: Random) -> tuple[bytes, int]:
        jpeg = self._jpegs[rng.randrange(len(self._jpegs))]
        if rng.random() < 0.8:
            jpeg = other_bytes(rng, jpeg)
        return jpeg, rng.choice((1, 2, 4, 8))

    def check(self, case: tuple[bytes, int]) -> bool:
        fast, accepted = reader.simplejpeg, True
        for decoder in (fast, None):
            reader.simplejpeg = decoder
            try:
                pixels = reader.decode(case[0], (HEIGHT, WIDTH), case[1])
                assert pixels.dtype == np.uint8 and pixels.shape == (-(-HEIGHT // case[1]), -(-WIDTH // case[1]), 3)
            except reader.BadSampleError as error:
                accepted = _said(error)
            finally:
                reader.simplejpeg = fast
        return accepted


def _said(error: reader.BadSampleError) -> bool:
    assert str(error).strip()
    return False
