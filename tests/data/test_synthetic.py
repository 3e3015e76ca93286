"""Drawn sets: the same settings give the same files, and masks that tell the truth."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sam_ds.config.errors import UserError
from sam_ds.data.index import build_index
from sam_ds.data.scenes import Painter
from sam_ds.data.synthetic import SyntheticConfig, describe, synthesize

SMALL = SyntheticConfig(train=5, val=2, size=(64, 96), objects=(3, 6))


def _digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("sa_*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_same_settings_give_the_same_files(tmp_path: Path) -> None:
    assert synthesize(tmp_path / "a", SMALL) and synthesize(tmp_path / "b", SMALL)
    assert _digest(tmp_path / "a") == _digest(tmp_path / "b") and len(_digest(tmp_path / "a")) == 14
    synthesize(tmp_path / "c", replace(SMALL, seed=1))
    assert not set(_digest(tmp_path / "a").values()) & set(_digest(tmp_path / "c").values())


def test_made_once(tmp_path: Path) -> None:
    assert synthesize(tmp_path, SMALL)
    before = _digest(tmp_path)
    assert not synthesize(tmp_path, SMALL) and _digest(tmp_path) == before
    with pytest.raises(UserError, match="other settings"):
        synthesize(tmp_path, replace(SMALL, train=6))


def test_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        synthesize(tmp_path, SMALL)


def test_tars_hold_the_same_pictures(tmp_path: Path) -> None:
    synthesize(tmp_path / "loose", SMALL)
    synthesize(tmp_path / "tars", replace(SMALL, tar=True, pictures_per_tar=3))
    assert sorted(p.name for p in (tmp_path / "tars" / "train").glob("*.tar")) == ["sa_000000.tar", "sa_000001.tar"]
    for split, count in (("train", 5), ("val", 2)):
        report = build_index(tmp_path / "tars" / split)
        assert report.samples == count and not report.findings


@pytest.mark.parametrize(
    "change",
    [{"train": 0}, {"val": 0}, {"size": (10, 20)}, {"size": (100, 64)}, {"objects": (5, 2)}, {"size": (64, 900)}],
)
def test_settings_out_of_range(tmp_path: Path, change: dict) -> None:
    with pytest.raises(UserError):
        synthesize(tmp_path / "x", replace(SMALL, **change))


def test_annotations_are_exact(tmp_path: Path) -> None:
    synthesize(tmp_path, SMALL)
    for path in (tmp_path / "train").glob("*.json"):
        info = json.loads(path.read_text())
        masks = [coco_mask.decode(a["segmentation"]) for a in info["annotations"]]
        assert len(masks) >= 1 and np.sum(masks, axis=0).max() == 1  # what hides is not what is hidden
        for annotation, mask in zip(info["annotations"], masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert annotation["area"] == len(rows)
            x, y = columns.min(), rows.min()
            assert annotation["bbox"] == [x, y, columns.max() - x + 1, rows.max() - y + 1]
            (point,) = annotation["point_coords"]
            assert mask[int(point[1]), int(point[0])] == 1


def test_masks_are_the_painted_pixels() -> None:
    scene = Painter().paint(np.random.default_rng(0), (80, 120), 8)
    for annotation in describe(scene, 1):
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        (label,) = np.unique(scene.labels[mask])
        assert np.array_equal(mask, scene.labels == label)


def test_shapes_hide_one_another() -> None:
    """Some shape must lie on an older one, or there is no occlusion to learn."""
    painter = Painter()
    covered = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        labels = painter.paint(rng, (200, 200), 15).labels
        for label in np.unique(labels)[1:]:
            rows, columns = np.nonzero(labels == label)
            box = labels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            covered += bool((box > label).any())
    assert covered > 30
