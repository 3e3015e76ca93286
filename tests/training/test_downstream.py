"""The fine-tunes on two gloo ranks and by the command line: the same guarantees as of every task."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam_ds.config.errors import UserError
from sam_ds.config.extras import need
from sam_ds.data.synthetic import SyntheticConfig, synthesize
from sam_ds.training import tasks
from tests.downstream import make_class_maps, make_coco, pictures_of
from tests.engine import ranks, toy
from tests.training import downstream_cases as cases

GRAPHS = {
    f"one_graph_{task}_{s}": partial(cases.one_graph, task=task, stage=s) for task in cases.RECIPES for s in (0, 2, 3)
}
PARITY = {
    f"parity_{task}_{stage}_{mode}": partial(cases.parity, task=task, stage=stage, checkpointing=mode)
    for task in cases.RECIPES
    for stage, mode in ((2, "none"), (3, "torch"))
}
EVERY_TASK = [(task, stage) for task in cases.RECIPES for stage in (2, 3)]
BASELINES = {"detect_objects": [], "segment_classes": ["commonest class"]}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("sets")
    synthesize(root / "drawn", SyntheticConfig(train=12, val=2, size=(96, 128), objects=(3, 6)))
    parts = [pictures_of(root / "drawn" / part) for part in ("train", "val")]
    made = {
        "detect_objects": make_coco(*parts, root / "coco"),
        "segment_classes": make_class_maps(*parts, root / "maps"),
    }
    return {task: str(folder) for task, folder in made.items()}


@pytest.fixture(scope="module")
def two_ranks(sets: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    runs = {f"resume_{t}_{stage}": partial(cases.resume, task=t, data=sets[t], stage=stage) for t, stage in EVERY_TASK}
    return ranks.run(GRAPHS | PARITY | runs, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(("task", "stage"), EVERY_TASK)
def test_ranks_without_anything_to_find_stay_with_the_others(
    two_ranks: dict[str, list[Any]], task: str, stage: int
) -> None:
    seen, plain = (ranks.value(two_ranks, f"one_graph_{task}_{s}") for s in (stage, 0))
    if task == "detect_objects":
        assert [rank["counts"] for rank in seen] == [[0, 2, 1], [1, 0, 2]]
    assert seen[0]["weights"] == seen[1]["weights"]
    assert seen[0]["losses"] == pytest.approx(plain[0]["losses"], rel=1e-4)


@pytest.mark.parametrize("name", PARITY)
def test_gradients_equal_plain_autograd(two_ranks: dict[str, list[Any]], name: str) -> None:
    for seen in ranks.value(two_ranks, name):
        assert seen["passed"], seen["report"]


@pytest.mark.parametrize(("task", "stage"), EVERY_TASK)
def test_a_resumed_run_ends_as_if_it_had_not_stopped(two_ranks: dict[str, list[Any]], task: str, stage: int) -> None:
    seen, _ = ranks.value(two_ranks, f"resume_{task}_{stage}")
    straight, resumed = seen["straight"], seen["resumed"]
    assert straight[:3] == [6, 48, 0] and resumed[:3] == [6, 48, 4]
    assert straight[3] == resumed[3]
    measured = []
    for folder in map(Path, seen["folders"]):
        measured.append(json.loads((folder / "evaluations.json").read_text()))
        assert list(measured[-1]) == [*BASELINES[task], "untrained", "step 3", "step 6"]
        assert list(folder.glob("pictures/step_00000006/*.png"))
        assert (folder / "pictures/step_00000006/boxes.json").is_file() == (task == "detect_objects")
    assert measured[0] == measured[1]


def areas(picture: Path) -> list[float]:
    """Of the masks of a picture, in pixels."""
    return [mark["area"] for mark in json.loads(picture.read_text())["annotations"]]


@pytest.fixture(scope="module")
def learnt(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Boxes of three small real pictures with few nuclei, and classes of the three with the largest."""
    root = tmp_path_factory.mktemp("real")
    found = pictures_of(data_dir / "nuclei" / "train")
    few = sorted(found[:40], key=lambda path: len(areas(path)))[:3]
    large = sorted(found, key=lambda path: mean(areas(path)))[-3:]
    data = {
        "detect_objects": make_coco(few, few, root / "coco"),
        "segment_classes": make_class_maps(large, large, root / "maps"),
    }
    steps = {"detect_objects": 150, "segment_classes": 40}
    runs = {task: partial(cases.learn, task=task, data=str(data[task]), steps=steps[task]) for task in data}
    return ranks.run(runs, 1, tmp_path_factory.mktemp("ranks"))


def test_boxes_of_a_few_real_pictures_are_learnt(learnt: dict[str, list[Any]]) -> None:
    found = ranks.value(learnt, "detect_objects")[0]
    assert found["untrained"]["ap50"] < 0.02
    assert found["step 150"]["ap50"] > 0.5


def test_classes_of_a_few_real_pictures_are_learnt(learnt: dict[str, list[Any]]) -> None:
    found = ranks.value(learnt, "segment_classes")[0]
    assert found["commonest class"]["miou"] < 0.5
    assert found["step 40"]["miou"] > 0.7


def test_other_classes_than_the_data_s_are_refused(sets: dict[str, str]) -> None:
    kit, recipe = tasks.kit("detect_objects"), cases.boxes()
    kit.open_data(sets["detect_objects"], None)
    recipe = dataclasses.replace(recipe, detect=dataclasses.replace(recipe.detect, num_classes=80))
    with pytest.raises(UserError, match=r"has 1 categories, .*=80: --set detect\.num_classes=1"):
        kit.train_loader(recipe, toy.config(2), None)


def test_more_classes_than_the_recipe_s_are_told(sets: dict[str, str], tmp_path: Path) -> None:
    """They are what makes every label map bad, before the quarantine has seen one."""
    kit, recipe = tasks.kit("segment_classes"), cases.classes()
    root = tmp_path / "maps"
    shutil.copytree(sets["segment_classes"], root)
    for path in root.glob("annotations/*/*.png"):
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 150)).save(path)
    kit.open_data(str(root), None)
    with pytest.raises(UserError, match=r"no pixel .* has a class; 12 of them are bad, the first: .*150"):
        kit._commonest(recipe)


def test_more_queries_than_cells_are_refused() -> None:
    recipe = cases.boxes()
    recipe = dataclasses.replace(recipe, detect=dataclasses.replace(recipe.detect, num_queries=2000))
    with pytest.raises(UserError, match="num_queries=2000: test has 1344 cells"):
        tasks.kit("detect_objects").check(recipe)


def test_a_missing_package_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^task=x needs no_such_package: pip install 'sam-ds\[downstream\]'$"):
        need("task=x", ("json", "no_such_package"), "downstream")
