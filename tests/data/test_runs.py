"""Run-length strings: parsed as pycocotools does, and refused with a reason when they are broken."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sam_ds.data import runs

SIZE = (37, 53)


def _segmentations(count: int = 24) -> tuple[np.ndarray, list[dict]]:
    rng = np.random.default_rng(0)
    masks = rng.random((count, *SIZE)) < np.linspace(0.001, 0.999, count)[:, None, None]
    masks[0], masks[1] = False, True
    encoded = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return masks, [{"size": list(SIZE), "counts": rle["counts"].decode()} for rle in encoded]


def _decode(ends: np.ndarray) -> np.ndarray:
    """The definition: a pixel is set if an odd number of ends lie at or before it."""
    passed = np.searchsorted(ends, np.arange(SIZE[0] * SIZE[1]), side="right")
    return (passed % 2 == 1).reshape(SIZE[1], SIZE[0]).T


@pytest.fixture(params=["compiled", "numpy"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "numpy":
        monkeypatch.setattr(runs, "_runs_compiled", None)
    else:
        assert runs._runs_compiled is not None


@pytest.mark.usefixtures("either")
def test_parse_equals_decode() -> None:
    masks, segmentations = _segmentations()
    ends, offsets = runs.parse(segmentations, SIZE)
    assert ends.dtype == np.int32 and offsets.dtype == np.int64 and len(offsets) == len(masks) + 1
    for number, mask in enumerate(masks):
        own = ends[offsets[number] : offsets[number + 1]]
        assert own[-1] == SIZE[0] * SIZE[1]
        assert np.array_equal(_decode(own), mask)


def test_lists_of_counts() -> None:
    masks, segmentations = _segmentations()
    expected = runs.parse(segmentations, SIZE)
    lists = []
    for mask in masks:
        flat = mask.T.ravel()
        limits = np.flatnonzero(np.diff(flat.astype(int))) + 1
        counts = np.diff([0, *limits, flat.size]).tolist()
        lists.append({"size": list(SIZE), "counts": [0, *counts] if flat[0] else counts})
    for made, right in zip(runs.parse(lists, SIZE), expected, strict=True):
        assert np.array_equal(made, right)


def test_real_masks(data_dir) -> None:
    import json

    path = next(iter(sorted((data_dir / "photos" / "val").glob("*.json"))))
    info = json.loads(path.read_text())
    size = (info["image"]["height"], info["image"]["width"])
    ends, offsets = runs.parse([a["segmentation"] for a in info["annotations"]], size)
    for number, annotation in enumerate(info["annotations"]):
        lengths = np.diff(ends[offsets[number] : offsets[number + 1]], prepend=0)
        assert lengths[1::2].sum() == annotation["area"]


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: "", "another number of pixels"),
        (lambda s: s + "5", "another number of pixels"),
        (lambda s: s[: len(s) // 2], "another number of pixels|breaks off"),
        (lambda s: s[:4] + "~" + s[4:], "character"),
        (lambda s: s[:4] + "é" + s[4:], "character"),
        (lambda s: s + "P", "breaks off"),
        (lambda s: "oooooooooo0", "another number of pixels"),
        (lambda s: "O", "negative run"),
    ],
)
def test_broken_strings(change, reason: str) -> None:
    _, segmentations = _segmentations()
    segmentations[5]["counts"] = change(segmentations[5]["counts"])
    with pytest.raises(runs.BadRunsError, match=f"mask 5 .*({reason})") as caught:
        runs.parse(segmentations, SIZE)
    assert caught.value.mask == 5


@pytest.mark.parametrize(
    ("counts", "reason"),
    [([5, 7], "another number"), ([-1, SIZE[0] * SIZE[1] + 1], "negative"), ([1.5], "whole numbers"), (None, "list")],
)
def test_broken_lists(counts, reason: str) -> None:
    with pytest.raises(runs.BadRunsError, match=reason):
        runs.parse([{"size": list(SIZE), "counts": counts}], SIZE)


def test_mask_of_another_picture() -> None:
    _, segmentations = _segmentations()
    with pytest.raises(runs.BadRunsError, match=r"mask 0 is for a picture of \[37, 53\]"):
        runs.parse(segmentations, (53, 37))


def test_no_masks() -> None:
    ends, offsets = runs.parse([], SIZE)
    assert len(ends) == 0 and offsets.tolist() == [0]
