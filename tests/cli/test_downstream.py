"""Fine-tunes by the command line: a SAM's masks of COCO's boxes, and what users get wrong."""

from __future__ import annotations

import json
import shutil
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from sam_ds.cli.main import main
from sam_ds.config.schema import ModelConfig
from sam_ds.data.synthetic import SyntheticConfig, synthesize
from sam_ds.evaluation import box_masks
from sam_ds.modeling.convert import save_weights
from sam_ds.modeling.presets import build_sam
from tests.cli.test_bad_input import fails
from tests.downstream import CATEGORY, make_class_maps, make_coco, pictures_of


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """coco/ and maps/, a few drawn pictures in each."""
    root = tmp_path_factory.mktemp("sets")
    synthesize(root / "drawn", SyntheticConfig(train=3, val=2, size=(64, 96), objects=(3, 4)))
    parts = [pictures_of(root / "drawn" / part) for part in ("train", "val")]
    make_coco(*parts, root / "coco")
    make_class_maps(*parts, root / "maps")
    return root


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "sam.safetensors"
    save_weights(build_sam(ModelConfig(preset="tiny_256")).state_dict(), path)
    return path


def test_a_sam_s_masks_of_true_and_of_found_boxes(
    sam: Path, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [{"image_id": 2, "category_id": CATEGORY, "bbox": [10.0, 10.0, 30.0, 20.0], "score": 0.25}]
    (tmp_path / "found.json").write_text(json.dumps(found))
    asked = ["eval", sam, "--preset", "tiny_256", "--data", sets / "coco", "--coco", "--output", tmp_path / "out"]
    for more, boxes in (([], 6), (["--boxes", tmp_path / "found.json"], 1)):
        assert main([str(word) for word in [*asked, *more, "--set", "data.workers=0"]]) == 0
        masks: list[dict[str, Any]] = json.loads((tmp_path / "out" / "masks.json").read_text())
        results = json.loads((tmp_path / "out" / "eval.json").read_text())
        assert len(masks) >= boxes if not more else len(masks) == boxes
        assert 0.0 <= results["metrics"]["model"]["ap"] <= 1.0
        assert "AP50" in capsys.readouterr().out
    images = json.loads((sets / "coco/annotations/instances_val2017.json").read_text())["images"]
    assert masks[0]["score"] == 0.25
    assert masks[0]["segmentation"]["size"] == [images[1]["height"], images[1]["width"]]


def test_a_mistake_in_the_true_masks_is_told_before_the_model_s_are_made(
    sam: Path, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(sets / "coco", tmp_path / "coco", symlinks=True)
    path = tmp_path / "coco/annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["segmentation"] = [[]]
    path.write_text(json.dumps(content))
    monkeypatch.setattr(box_masks, "masks_of_boxes", None)
    line = fails(capsys, "eval", sam, "--preset", "tiny_256", "--data", tmp_path / "coco", "--coco")
    assert "the segmentation of annotations[1] is not as COCO's" in line


def test_options_that_would_do_nothing(sam: Path, sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["eval", sam, "--preset", "tiny_256", "--data", sets / "coco"]
    assert "--boxes belongs to --coco" in fails(capsys, *asked, "--boxes", "found.json")
    assert "found.json cannot be read: No such file" in fails(capsys, *asked, "--coco", "--boxes", "found.json")


@pytest.mark.parametrize(
    ("recipe", "settings", "words"),
    [
        ("vitdet_tiny", ["detect.num_classes=80"], "has 1 categories, and detect.num_classes=80"),
        ("vitdet_tiny", ["detect.num_queries=99999"], "cells for them"),
        ("vitdet_tiny", ["data.crop_size=64"], "data.crop_size is set, which does nothing in task=detect_objects"),
        ("vitdet_tiny", ["classes.num_classes=3"], "classes is set, which does nothing in task=detect_objects"),
        ("segment_tiny", ["classes.num_classes=256"], "must be from 2 to 255"),
        ("segment_tiny", [], "cannot be listed"),
    ],
)
def test_what_cannot_be_trained(
    recipe: str, settings: list[str], words: str, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [word for setting in settings for word in ("--set", setting)]
    line = fails(capsys, "train", "--recipe", recipe, "--data", sets / "coco", "--output", tmp_path / "run", *changes)
    assert words in line


def test_a_detector_without_its_library_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = util.find_spec
    monkeypatch.setattr(
        "sam_ds.config.extras.find_spec", lambda name: None if name == "transformers" else find_spec(name)
    )
    line = fails(capsys, "check", "--recipe", "vitdet_tiny")
    assert "task=detect_objects needs transformers: pip install 'sam-ds[downstream]'" in line
