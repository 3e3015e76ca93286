"""Copies of checkpoints elsewhere: whole or not there, verified when they come back."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam_ds.config.errors import UserError
from sam_ds.storage import checkpoints
from sam_ds.storage.checkpoints import step_folder
from sam_ds.storage.remote import Mirror
from tests.storage.cases import complete


def saved(root: Path, step: int) -> Path:
    folder = step_folder(root, step)
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_text(f"weights of step {step}")
    return complete(folder, step)


def steps(root: Path) -> list[int]:
    return [checkpoints.step_of(path) for path in checkpoints.find(root)]


@pytest.fixture(params=["file", "memory"])
def mirror(request: pytest.FixtureRequest, tmp_path: Path) -> Mirror:
    return Mirror(f"file://{tmp_path}/there" if request.param == "file" else f"memory://{tmp_path.name}/there")


def test_what_was_copied_comes_back(mirror: Mirror, tmp_path: Path) -> None:
    assert mirror.steps() == [] and mirror.pull(tmp_path / "new", after=-1) == ([], [])
    for step in (10, 20):
        mirror.push(saved(tmp_path / "run", step))
    assert mirror.steps() == [10, 20]
    told: list[str] = []
    (fetched,), notes = mirror.pull(tmp_path / "new", after=-1, tell=told.append)
    assert len(told) == 1 and told[0].endswith("there/step_00000020/weights.safetensors")
    assert "step 20" in notes[0] and [fetched] == checkpoints.find(tmp_path / "new")
    assert checkpoints.damaged(fetched, checkpoints.read_manifest(fetched).files) == []
    assert mirror.pull(tmp_path / "new", after=20) == ([], [])


def test_a_damaged_one_makes_room_for_its_copy(mirror: Mirror, tmp_path: Path) -> None:
    for step in (10, 20):
        mirror.push(saved(tmp_path / "run", step))
    damaged = step_folder(tmp_path / "run", 20)
    (damaged / "weights.safetensors").write_text("weights of step 21")
    (fetched,), _ = mirror.pull(tmp_path / "run", after=10)
    assert fetched == damaged and (fetched / "weights.safetensors").read_text() == "weights of step 20"
    assert (tmp_path / "run" / "step_00000020.damaged" / "weights.safetensors").read_text() == "weights of step 21"


def test_what_the_run_drops_goes_there_too_and_nothing_else(mirror: Mirror, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        folder = saved(tmp_path / "run", step)
        dropped = checkpoints.prune(tmp_path / "run", keep_last=2, keep_best=False)
        mirror.push(folder, [checkpoints.step_of(path) for path in dropped])
    assert mirror.steps() == steps(tmp_path / "run") == [20, 30]
    mirror.push(saved(tmp_path / "new_machine", 40))
    assert mirror.steps() == [20, 30, 40]


def test_a_copy_that_is_not_whole_or_damaged_is_gone_back_from(tmp_path: Path) -> None:
    mirror, there = Mirror(f"file://{tmp_path}/there"), tmp_path / "there"
    for step in (10, 20, 30, 40):
        mirror.push(saved(tmp_path / "run", step))
    (step_folder(there, 40) / "complete.json").unlink()
    (step_folder(there, 30) / "weights.safetensors").write_text("weights of step 31")
    (step_folder(there, 20) / "weights.safetensors").unlink()
    _, notes = mirror.pull(tmp_path / "new", after=-1)
    assert "not what was written" in notes[0] and "is missing" in notes[1] and "fetched step 10" in notes[2]
    assert steps(tmp_path / "new") == [10]


def test_a_url_that_nobody_knows_is_one_line() -> None:
    with pytest.raises(UserError, match=r"train.mirror=nowhere://bucket"):
        Mirror("nowhere://bucket/run")
