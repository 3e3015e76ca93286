"""Classification on real pictures, and what it refuses. What every task must do is in ``test_training``."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sam_ds.config.errors import UserError
from sam_ds.training import tasks
from tests.data import photos
from tests.engine import ranks, toy
from tests.training import cases, classify_cases

EACH = 6  # pictures of a class


@pytest.fixture(scope="module")
def real(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs and nuclei, a folder of links for each."""
    root = tmp_path_factory.mktemp("real")
    for kind in ("nuclei", "photos"):
        (root / kind).mkdir()
        pictures = sorted((data_dir / kind).rglob("*.jpg"))[:EACH]
        assert len(pictures) == EACH
        for picture in pictures:
            (root / kind / picture.name).symlink_to(picture)
    return root


def test_a_dozen_real_pictures_are_learnt(real: Path, tmp_path: Path) -> None:
    found = ranks.value(ranks.run({"learn": partial(classify_cases.learn, data=str(real))}, 1, tmp_path), "learn")[0]
    assert list(found) == ["most frequent", "untrained", "step 40"]
    assert found["most frequent"]["top1"] == 0.5 and found["most frequent"]["pictures"] == 2 * EACH
    assert json.loads((tmp_path / "learn" / "run" / "classes.json").read_text()) == ["nuclei", "photos"]
    assert found["step 40"]["top1"] == 1.0 and found["step 40"]["loss"] < 0.2 < found["untrained"]["loss"]


def loader(data: Path, val: Path | None = None, micro_batch: int = 2, **classify: Any) -> None:
    kit, recipe = tasks.kit("classify_images"), cases.classify()
    kit.open_data(str(data), str(val) if val else None)
    recipe = dataclasses.replace(recipe, classify=dataclasses.replace(recipe.classify, **classify))
    kit.train_loader(recipe, dataclasses.replace(toy.config(2), micro_batch=micro_batch), None)


def test_what_cannot_be_learnt_is_one_clear_line(tmp_path: Path) -> None:
    three = photos.write(tmp_path / "three", photos.files())
    loader(three, num_classes=3)
    photos.write(tmp_path / "one", {name: content for name, content in photos.files().items() if "n01/" in name})
    photos.write(tmp_path / "none", {"a.jpg": photos.jpeg(1)})
    strange = photos.write(tmp_path / "strange", {"n01/a.jpg": photos.jpeg(1), "n99/b.jpg": photos.jpeg(2)})
    mistakes = {
        r"has 3 classes, and classify\.num_classes=7: .*--set classify\.num_classes=3": partial(
            loader, three, num_classes=7
        ),
        "has one class, n01": partial(loader, tmp_path / "one", tmp_path / "one"),
        "has no classes": partial(loader, tmp_path / "none", tmp_path / "none"),
        "has 1 classes that .*three has not: n99": partial(loader, three, strange),
        "leaves no other picture to mix with": partial(loader, three, num_classes=3, mixup=0.2, micro_batch=1),
    }
    for words, mistake in mistakes.items():
        with pytest.raises(UserError, match=words) as error:
            mistake()
        assert "\n" not in str(error.value)
