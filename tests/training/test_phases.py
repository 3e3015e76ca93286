"""Trainings that start from other weights, in one phase or two, on two gloo ranks."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest

from sam_ds.data.synthetic import SyntheticConfig, synthesize
from tests.engine import ranks
from tests.training import phase_cases

CASES = ("begun_second", "damaged_between", "unsaved_between", "refused", "from_a_run")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    data = tmp_path_factory.mktemp("scenes") / "set"
    synthesize(data, SyntheticConfig(train=12, val=2, size=(96, 128), objects=(3, 6)))
    wanted = {f"chain_{stage}": partial(phase_cases.chain, data=str(data), stage=stage) for stage in (2, 3)}
    wanted |= {name: partial(getattr(phase_cases, name), data=str(data)) for name in CASES}
    return ranks.run(wanted, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("stage", [2, 3])
def test_killed_in_either_phase_it_comes_to_the_same_weights(results: dict[str, list[Any]], stage: int) -> None:
    seen, other = ranks.value(results, f"chain_{stage}")
    assert seen["first"][0] == seen["first"][1] and seen["first"][0].startswith("step_00000006")
    assert seen["second"][0] == seen["second"][1] and seen["second"][0].startswith("step_00000006")
    assert seen["untouched"]
    assert "mae_tiny" not in seen["resumed"] and re.search(
        r"going on from \S*killed/checkpoints/step_", seen["resumed"]
    )
    assert not other["said"]  # only rank 0 speaks


def test_the_second_phase_starts_from_the_first_s_last_checkpoint(results: dict[str, list[Any]]) -> None:
    seen = ranks.value(results, "chain_2")[0]
    source = seen["init"]["source"]
    assert source.endswith("straight/pretrain/checkpoints/step_00000006/weights.safetensors")
    assert f"starting from {source}: 50 weights taken, 1 resized" in seen["said"]
    assert seen["init"]["taken"]["image_encoder.blocks.0.mlp.lin1.weight"] == "blocks.0.mlp.fc1.weight"
    assert seen["recipe"]["pretrain"] == "mae_tiny" and seen["recipe"]["model"]["init"].endswith("straight/pretrain")


def test_the_first_phase_is_over_when_the_second_has_begun(results: dict[str, list[Any]]) -> None:
    seen = ranks.value(results, "begun_second")[0]
    assert re.search(r"going on from \S*run/checkpoints/step_00000004", seen["said"])
    assert "holds a training already (to step 5)" in seen["never"]
    assert re.search(r"going on from \S*run/checkpoints/step_00000005", seen["other"])
    assert seen["there"] == [False, False]


def test_a_damaged_end_of_the_first_phase_is_trained_again(results: dict[str, list[Any]]) -> None:
    said = ranks.value(results, "damaged_between")[0]["said"]
    assert re.search(r"damaged, set aside: \S*pretrain/checkpoints/step_00000005", said)
    assert re.search(r"starting from \S*pretrain/checkpoints/step_00000005/weights", said)


def test_a_first_phase_that_could_not_be_saved_is_not_over(results: dict[str, list[Any]]) -> None:
    seen = ranks.value(results, "unsaved_between")[0]
    assert "NOT SAVED" in seen["said"] and "mae_tiny is trained, but its last step could not be saved" in seen["said"]
    assert not seen["begun"]
    assert re.search(r"going on from \S*pretrain/checkpoints/step_00000004", seen["again"])
    assert re.search(r"starting from \S*pretrain/checkpoints/step_00000005/weights", seen["again"])


def test_mistakes_of_the_second_phase_come_before_the_first(results: dict[str, list[Any]]) -> None:
    seen = ranks.value(results, "refused")[0]
    assert re.fullmatch(
        r"pretrain=mae_tiny holds a ViT of width 128 and depth 4, and this model has width 768 and depth 12: .*\n",
        seen["width"],
    )
    assert "nowhere" in seen["data"] and seen["data"].count("\n") == 1
    assert not seen["trained"]


def test_a_run_folder_or_a_checkpoint_is_a_start(results: dict[str, list[Any]]) -> None:
    seen = ranks.value(results, "from_a_run")[0]
    assert seen["equal"] == [True, True]
    assert "going on from" in seen["on"] and "starting from" not in seen["on"]
    assert re.fullmatch(r"model\.init=\S*mae: there is nothing; give .*\n", seen["anew"])
    assert not seen["init"]["new"] and not seen["init"]["left"]
