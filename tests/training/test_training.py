"""The whole spine on two gloo ranks: the real tasks, drawn pictures, the loop, the run folder."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sam_ds.data.synthetic import SyntheticConfig, synthesize
from sam_ds.storage import checkpoints
from sam_ds.storage.checkpoints import read_manifest
from sam_ds.tracking.journal import read_metrics
from tests.data import photos
from tests.engine import ranks
from tests.training import cases

ONE_GRAPH = {
    f"one_graph_{stage}_{mode}": partial(cases.one_graph, stage=stage, checkpointing=mode)
    for stage, mode in ((0, "none"), (2, "none"), (3, "none"), (3, "torch"))
}
PARITY = {
    f"parity_{task}_{stage}_{mode}": partial(cases.parity, task=task, stage=stage, checkpointing=mode)
    for task in cases.SMALL
    for stage, mode in ((0, "none"), (2, "torch"), (3, "none"), (3, "fairscale"))
}
# What a task measures before its model, and what it prints of the other evaluation.
BASELINES = {
    "segment_images": ["disc", "disc, nearest"],
    "pretrain_mae": ["flat patches"],
    "classify_images": ["most frequent"],
}
SAID = {
    "segment_images": ("eval.clicks (1, 2) -> (3,)", "mIoU after 3 clicks"),
    "pretrain_mae": ("eval.max_pictures 2 -> 1", "PSNR of masked pixels"),
    "classify_images": ("eval.max_pictures 2 -> 1", "top-5, %"),
}
EVERY_TASK = [(task, stage) for task in cases.SMALL for stage in (2, 3)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("scenes")
    synthesize(root / "set", SyntheticConfig(train=12, val=2, size=(96, 128), objects=(3, 6)))
    return str(root / "set")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(photos.write(tmp_path_factory.mktemp("classes"), photos.files()))


@pytest.fixture(scope="module")
def two_ranks(pictures: str, classes: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    data = {task: classes if task == "classify_images" else pictures for task in cases.SMALL}
    runs = {f"resume_{t}_{stage}": partial(cases.resume, task=t, data=data[t], stage=stage) for t, stage in EVERY_TASK}
    batches = {
        "batches": partial(cases.global_batches, data=pictures, accumulation=1),
        "masked": partial(cases.masked, data=pictures, accumulation=1),
    }
    rewinds = {f"rewind_{every}": partial(cases.rewind, data=pictures, save_every=every) for every in (2, 0)}
    names = ("failed_while_saving", "cut_short", "measured_late", "mirrored", "damaged_here")
    others = {name: partial(getattr(cases, name), data=pictures) for name in names}
    return ranks.run(ONE_GRAPH | PARITY | runs | batches | rewinds | others, 2, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def one_rank(pictures: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    batches = {
        "batches": partial(cases.global_batches, data=pictures, accumulation=2),
        "masked": partial(cases.masked, data=pictures, accumulation=2),
    }
    return ranks.run(batches, 1, tmp_path_factory.mktemp("rank"))


@pytest.mark.parametrize("name", ONE_GRAPH)
def test_ranks_that_draw_other_prompts_stay_together(two_ranks: dict[str, list[Any]], name: str) -> None:
    seen, plain = ranks.value(two_ranks, name), ranks.value(two_ranks, "one_graph_0_none")
    for step in range(3):
        assert seen[0]["labels"][step] != seen[1]["labels"][step]  # else this test says nothing
    assert seen[0]["weights"] == seen[1]["weights"]
    assert seen[0]["losses"] == pytest.approx(plain[0]["losses"], rel=1e-4)


@pytest.mark.parametrize("name", PARITY)
def test_gradients_equal_plain_autograd(two_ranks: dict[str, list[Any]], name: str) -> None:
    for seen in ranks.value(two_ranks, name):
        assert seen["passed"], seen["report"]


@pytest.mark.parametrize(("task", "stage"), EVERY_TASK)
def test_a_resumed_run_ends_as_if_it_had_not_stopped(two_ranks: dict[str, list[Any]], task: str, stage: int) -> None:
    seen, other = ranks.value(two_ranks, f"resume_{task}_{stage}")
    straight, resumed = seen["straight"], seen["resumed"]
    assert straight[4] == other["straight"][4] and resumed[4] == other["resumed"][4]  # each rank's own weights
    assert straight[:3] == [6, 48, 0] and resumed[:3] == [6, 48, 4]
    assert straight[3] == resumed[3]  # every weight, to the last bit
    losses = []
    for folder in map(Path, seen["folders"]):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append({row["step"]: row["loss/total"] for row in rows if "loss/total" in row})
        _check_folder(folder, BASELINES[task])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("task", "stage"), EVERY_TASK)
def test_a_finished_run_says_so_and_is_measured_as_asked(
    two_ranks: dict[str, list[Any]], task: str, stage: int
) -> None:
    said = [seen["said"] for seen in ranks.value(two_ranks, f"resume_{task}_{stage}")]
    assert "already trained to step 6 of 6: set train.steps higher" in said[0]
    assert all(words in said[0] for words in SAID[task])
    assert said[1] == ""


def test_pictures_that_lead_astray_are_left_out(two_ranks: dict[str, list[Any]]) -> None:
    """Two steps in a row are skipped, the 4th and the 5th: back to the checkpoint of step 2, without steps 3 to 5."""
    seen, other = ranks.value(two_ranks, "rewind_2")
    assert "REWOUND from step 5 to" in seen["said"] and "step_00000002" in seen["said"] and other["said"] == ""
    assert seen["state"] == other["state"]
    state = seen["state"]
    assert [state[name] for name in ("step", "rewinds", "left_out", "skipped")] == [6, 1, 3, 0]
    folder = Path(seen["folder"])
    rows = {row["step"]: row for row in read_metrics(folder / "metrics.jsonl")}
    assert all(math.isfinite(rows[step]["loss/total"]) for step in range(1, 7))
    assert read_manifest(folder / "checkpoints" / "step_00000006").progress["left_out"] == 3


def test_without_a_checkpoint_to_go_back_to_it_ends_with_the_reason(two_ranks: dict[str, list[Any]]) -> None:
    for seen in ranks.value(two_ranks, "rewind_0"):
        assert (
            "not finite in 2 steps in a row, up to step 5, before the first checkpoint: lower optim.lr" in seen["error"]
        )


def test_an_evaluation_that_was_cut_short_is_made_up_for_and_its_checkpoint_is_the_best(
    two_ranks: dict[str, list[Any]],
) -> None:
    seen = ranks.value(two_ranks, "cut_short")[0]
    assert "preempted at step 2" in seen["said"]
    assert seen["scores"] == {"step_00000002": 1.0, "step_00000006": 0.5}


def test_a_run_that_fails_waits_for_what_it_writes(two_ranks: dict[str, list[Any]]) -> None:
    for seen in ranks.value(two_ranks, "failed_while_saving"):
        assert seen == {"began": True, "busy": False, "saved": []}


def test_weights_are_measured_when_they_are_saved_and_not_among_skipped_steps(two_ranks: dict[str, list[Any]]) -> None:
    seen = ranks.value(two_ranks, "measured_late")[0]
    assert seen["measured"] == ["disc", "disc, nearest", "untrained", "step 6", "step 8"]
    assert list(seen["scores"]) == ["step_00000006", "step_00000008"] and None not in seen["scores"].values()


def test_a_machine_without_checkpoints_starts_from_the_copies(two_ranks: dict[str, list[Any]]) -> None:
    seen = ranks.value(two_ranks, "mirrored")[0]
    assert "NOT COPIED" not in seen["said"] and "step_00000003" in seen["there"]
    assert "holds a training that went further" in seen["said"]
    assert "fetched step 3 from file://" in seen["said"] and "already trained to step 3" in seen["said"]


def test_a_damaged_checkpoint_is_fetched_from_the_copies_or_gone_back_from(two_ranks: dict[str, list[Any]]) -> None:
    seen = ranks.value(two_ranks, "damaged_here")[0]
    _, copied, older, nothing = seen["said"]
    assert "damaged, set aside" in copied and "fetched step 2 from file://" in copied
    assert re.search(r"going on from \S*step_00000002", copied)
    assert "not taken from file://" in older and re.search(r"going on from \S*step_00000002", older)
    assert re.search(r"step_00000003/weights\S* has 1 of .*; not taken from file://.* has 1 of", nothing)
    assert {"step_00000002.damaged", "step_00000003", "step_00000004.damaged"} <= set(seen["here"])
    assert not seen["watched"]  # what ended with its opening, as a user's mistake does


def _check_folder(folder: Path, baselines: list[str]) -> None:
    for name in ("recipe.json", "deepspeed.json", "environment.json", "evaluations.json", "pictures/curves.png"):
        assert (folder / name).is_file(), name
    evaluations = json.loads((folder / "evaluations.json").read_text())
    assert list(evaluations) == [*baselines, "untrained", "step 3", "step 6"]
    kept = checkpoints.find(folder / "checkpoints")
    assert kept[-1].name == "step_00000006" and len(kept) <= 2  # the last, and the best if it is another
    assert list(folder.glob("pictures/step_00000006/*.png"))


def test_two_ranks_and_one_see_the_same_global_batches(
    one_rank: dict[str, list[Any]], two_ranks: dict[str, list[Any]]
) -> None:
    assert ranks.value(one_rank, "batches")[0] == ranks.value(two_ranks, "batches")[0]


def test_two_ranks_and_one_mask_alike(one_rank: dict[str, list[Any]], two_ranks: dict[str, list[Any]]) -> None:
    one, two = (ranks.value(results, "masked")[0] for results in (one_rank, two_ranks))
    assert len(one["seen"]) == 12 and one["seen"] == two["seen"]
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-5)
    # Twice the recipe's, for twice its batch; the first steps of a warm-up of 100.
    assert one["rates"] == pytest.approx([2e-3, 2e-3, 2e-5, 4e-5, 6e-5]) and two["rates"] == one["rates"]
