"""``sam-ds eval`` of a classifier: labels are its training's, whatever classes the pictures it is measured on have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sam_ds import recipes
from sam_ds.cli.main import main
from sam_ds.config import recipe_file
from sam_ds.config.schema import Recipe
from sam_ds.modeling.convert import save_weights
from sam_ds.tasks.classify_images import ClassifyImages
from tests.cli.test_bad_input import fails
from tests.data import photos
from tests.storage.cases import complete

ANSWER = "n02"  # what the model takes every picture for


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run folder with a classifier of ``photos.CLASSES``, as a training leaves it."""
    recipe = _recipe()
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000010"
    checkpoint.mkdir(parents=True)
    model = ClassifyImages(recipe).model
    torch.nn.init.zeros_(model.head.weight)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([float(name == ANSWER) for name in photos.CLASSES]))
    save_weights(model.state_dict(), checkpoint / "weights.safetensors")
    complete(checkpoint, 10, recipe_file.to_dict(recipe))
    (tmp_path / "run" / "classes.json").write_text(json.dumps(photos.CLASSES))
    return tmp_path / "run"


def _recipe() -> Recipe:
    recipe = recipes.get("vit_tiny_classify")
    classify = replace(recipe.classify, num_classes=len(photos.CLASSES))
    return replace(recipe, classify=classify, data=replace(recipe.data, workers=0))


def _of(folder: Path, names: dict[str, str]) -> Path:
    """Pictures of some classes, in folders of these names."""
    paths = {Path(name): content for name, content in photos.files().items()}
    kept = {path: content for path, content in paths.items() if path.parent.name in names}
    return photos.write(folder, {f"{names[path.parent.name]}/{path.name}": content for path, content in kept.items()})


def _right(run: Path, data: Path) -> float:
    assert main(["eval", str(run), "--data", str(data), "--val", str(data), "--device", "cpu"]) == 0
    found = json.loads((run / "evaluation" / "step_00000010" / "eval.json").read_text())["metrics"]
    assert found["most frequent"]["pictures"] == found["model"]["pictures"]
    return float(found["model"]["top1"])


def test_labels_are_those_of_the_training(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    all_of_them = _of(tmp_path / "all", {name: name for name in photos.CLASSES})
    assert _right(run_dir, all_of_them) == pytest.approx(1 / 3)
    assert _right(run_dir, _of(tmp_path / "two", {"n02": "n02", "n10": "n10"})) == 0.5  # its third and second class
    assert _right(run_dir, _of(tmp_path / "one", {"n02": "n02"})) == 1.0
    assert "note" not in capsys.readouterr().out


def test_without_names_labels_must_be_as_many(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "classes.json").unlink()
    all_of_them = _of(tmp_path / "all", {name: name for name in photos.CLASSES})
    assert _right(run_dir, all_of_them) == pytest.approx(1 / 3)
    assert "note: no classes.json says which classes" in capsys.readouterr().out
    few = _of(tmp_path / "two", {"n02": "n02", "n10": "n10"})
    assert "has 2 classes, and classify.num_classes=3" in _refused(capsys, run_dir, few)
    more = photos.write(_of(tmp_path / "four", {name: name for name in photos.CLASSES}), {"n99/a.jpg": photos.jpeg(1)})
    assert "has 4 classes, and classify.num_classes=3" in _refused(capsys, run_dir, more)


def test_classes_that_the_model_does_not_know(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = _of(tmp_path / "others", {"n01": "cat", "n02": "n02", "n10": "dog"})
    assert "has 2 classes that the model was not trained on, such as cat" in _refused(capsys, run_dir, others)
    (run_dir / "classes.json").write_text("[")
    assert "classes.json is damaged" in _refused(capsys, run_dir, others)


def _refused(capsys: pytest.CaptureFixture[str], run: Path, data: Path) -> str:
    capsys.readouterr()
    return fails(capsys, "eval", run, "--data", data, "--val", data, "--device", "cpu")
