"""Checkpoint folders: which are whole, which stay, and what a kill at any moment leaves."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sam_ds.config.errors import UserError
from sam_ds.config.schema import OptimConfig, Recipe, TrainConfig
from sam_ds.storage import checkpoints
from sam_ds.storage.checkpoints import Manifest, step_folder
from tests.storage.cases import complete


def steps(root: Path) -> list[int]:
    return [int(path.name[5:]) for path in checkpoints.find(root)]


def test_only_complete_folders_count_and_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for step, score in ((10, 0.2), (20, 0.9), (30, 0.3), (40, None)):
        complete(step_folder(tmp_path, step), step, score=score)
    step_folder(tmp_path, 50).mkdir()
    assert steps(tmp_path) == [10, 20, 30, 40]
    assert checkpoints.resolve(tmp_path).name == "step_00000040"
    (step_folder(tmp_path, 50) / "complete.json").write_text('{"score": 0.8, "files": {"gone.pt": 1}}')
    (step_folder(tmp_path, 10) / "complete.json").write_text("cut")
    checkpoints.prune(tmp_path, keep_last=1, keep_best=True)  # damaged ones are no reason to stop a training
    assert steps(tmp_path) == [20, 50]
    step_folder(tmp_path, 20).rename(tmp_path / "step_00000020.deleted")  # as a kill while deleting leaves it
    checkpoints.recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000050"]


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 4),  # the newest two, the best, one being written
        ({"keep_best": False}, 3),
        ({"keep_every": 10}, 4 + 10),
        ({"keep_every": 25}, 4 + 2),  # only those are kept that are saved: at 50 and 100
        ({"keep_every": 15, "eval_every": 5}, 4 + 6),  # for a better score one is saved anywhere
        ({"keep_every": 10, "eval_every": 5, "save_every": 20}, 4 + 10),  # both at once are one
        ({"keep_every": 15, "eval_every": 5, "keep_best": False}, 3 + 3),
        ({"keep_every": 10, "eval_every": 0, "save_every": 0}, 4),
    ],
)
def test_the_space_for_all_checkpoints(settings: dict[str, Any], count: int) -> None:
    train = TrainConfig(**{"steps": 100, "save_every": 10, "eval_every": 20, "keep_last": 2} | settings)
    recipe = Recipe("any", train=train)
    assert checkpoints.space_for_all(recipe, 1000) == count * 12_000
    averaged = dataclasses.replace(recipe, optim=OptimConfig(ema_decay=0.9))
    assert checkpoints.space_for_all(averaged, 1000) == count * 16_000


def test_a_damaged_one_is_set_aside_and_nothing_is_lost(tmp_path: Path) -> None:
    for _ in range(2):
        checkpoints.set_aside(complete(step_folder(tmp_path, 10), 10))
    assert steps(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000010.damaged", "step_00000010.damaged1"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b'"step": 10', b'"step": 11')),
            "not what was written",
        ),
        (lambda path: path.write_text("[]"), "cannot be read"),
        (lambda path: path.write_text('{"version": 1}'), "another version"),
        (lambda path: path.write_text('{"version": 2, "step": 10}'), "cannot be read"),
        (lambda path: path.write_text(""), "cannot be read"),
        (lambda path: path.write_text("[" * 100_000), "cannot be read"),
        (lambda path: path.unlink(), "not a complete checkpoint"),
    ],
)
def test_a_manifest_that_was_changed_is_named(damage, words: str, tmp_path: Path) -> None:
    folder = complete(step_folder(tmp_path, 10), 10)
    damage(folder / "complete.json")
    with pytest.raises(UserError, match=words) as said:
        checkpoints.read_manifest(folder)
    assert str(folder) in str(said.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "x"},
        {"files": []},
        {"files": {"../../weights": {"bytes": 1, "sha256": "0"}}},
        {"files": {"weights": {"sha256": "0"}}},
        {"shapes": {"weight": "12"}},
        {"progress": 3},
    ],
)
def test_a_manifest_that_no_save_writes_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    manifest = Manifest(1, 1, 2, "fp32", False, {}, {})
    checkpoints.write_manifest(tmp_path, dataclasses.replace(manifest, **changes))
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.read_manifest(tmp_path)


def test_one_that_lost_its_manifest_is_set_aside(tmp_path: Path) -> None:
    """A save never leaves that: its folder gets its name last."""
    step_folder(tmp_path, 10).mkdir()
    complete(step_folder(tmp_path, 20), 20)
    assert checkpoints.recover(tmp_path) == [step_folder(tmp_path, 10)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000010.damaged", "step_00000020"]


# A save that is killed at its n-th file operation: Python itself says when it is about to touch a file.
SAVE = """
import sys
from pathlib import Path
from sam_ds.storage import checkpoints
from tests.storage.cases import complete

root, step, content, last = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
partial = checkpoints.step_folder(root, step)
partial = partial.with_name(partial.name + checkpoints.PARTIAL)
count = 0

def kill(event, args):
    global count
    if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree") and str(root) in str(args):
        count += 1
        if count == last:
            import os
            os._exit(9)

sys.addaudithook(kill)
partial.mkdir()
for name in ("weights.safetensors", "moments_00000.safetensors"):
    (partial / name).write_text(content)
    checkpoints.sync(partial / name)
complete(partial, step)
checkpoints.sync(partial)
checkpoints.commit(partial)
"""


@pytest.mark.parametrize("step", [10, 20])
def test_a_kill_at_any_file_operation_of_a_save_leaves_a_whole_checkpoint(step: int, tmp_path: Path) -> None:
    """Of a new step, and of one that replaces a checkpoint of the same step. Once killed, a save is made again."""
    killed = 0
    for last in range(1, 100):
        root = tmp_path / str(last)
        older = step_folder(root, 10)
        older.mkdir(parents=True)
        (older / "weights.safetensors").write_text("old")
        complete(older, 10)
        ended = subprocess.run([sys.executable, "-c", SAVE, str(root), str(step), "new", str(last)], check=False)
        checkpoints.recover(root)
        newest = checkpoints.find(root)[-1]
        assert checkpoints.damaged(newest, checkpoints.read_manifest(newest).files) == []
        content = (newest / "weights.safetensors").read_text()
        assert content == ("new" if newest.name.endswith("20") else content) and content in ("old", "new")
        assert sorted(path.name for path in root.iterdir()) == [path.name for path in checkpoints.find(root)]
        if ended.returncode == 0:
            assert content == "new"
            break
        assert ended.returncode == 9
        killed += 1
    assert killed > 10


def test_a_score_that_comes_late_is_added_once_and_the_checkpoint_stays_whole(tmp_path: Path) -> None:
    folder = complete(step_folder(tmp_path, 10), 10)
    checkpoints.add_score(folder, 0.7)
    checkpoints.add_score(folder, 0.1)
    manifest = checkpoints.read_manifest(folder)
    assert manifest.score == 0.7 and checkpoints.damaged(folder, manifest.files) == []
    assert [path.name for path in folder.iterdir()] == ["complete.json"]
