"""What a training counts, and which checkpoint it goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam_ds.config.errors import UserError
from sam_ds.engine.checkpoint import Manifest
from sam_ds.engine.checkpoint.folder import step_folder, write_manifest
from sam_ds.training.progress import Progress
from sam_ds.training.state import RunFolder, TrainState


def _checkpoint(root: Path, step: int) -> Path:
    folder = step_folder(root / "checkpoints", step)
    folder.mkdir(parents=True)
    write_manifest(folder, Manifest(step, 1, 2, "fp32", False, {}, {}))
    return folder


def test_steps_and_skipped_steps_are_counted() -> None:
    state = TrainState().after(8, skipped=False).after(8, skipped=True).after(8, skipped=True)
    assert state == TrainState(step=3, pictures=24, skipped=2, skipped_in_a_row=2)
    assert state.after(8, skipped=False).skipped_in_a_row == 0
    assert TrainState(step=3, **state.progress()) == state


def test_auto_goes_on_from_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.checkpoint_for("auto") is None and folder.checkpoint_for("never") is None
    _checkpoint(tmp_path, 5)
    newest = _checkpoint(tmp_path, 20)
    (folder.checkpoints / "step_00000030.partial").mkdir()
    (folder.checkpoints / "step_00000040").mkdir()
    assert folder.checkpoint_for("auto") == newest


def test_never_does_not_write_over_a_training(tmp_path: Path) -> None:
    _checkpoint(tmp_path, 5)
    with pytest.raises(UserError, match=r"to step 5.*--output"):
        RunFolder(tmp_path).checkpoint_for("never")


def test_a_path_may_name_a_run_or_a_checkpoint(tmp_path: Path) -> None:
    first = _checkpoint(tmp_path / "other", 5)
    newest = _checkpoint(tmp_path / "other", 20)
    folder = RunFolder(tmp_path / "run")
    assert folder.checkpoint_for(str(first)) == first
    assert folder.checkpoint_for(str(tmp_path / "other")) == newest
    with pytest.raises(UserError, match="no complete checkpoint"):
        folder.checkpoint_for(str(tmp_path / "nothing"))


def test_a_log_gets_plain_lines_and_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    for enabled in (True, False):
        with Progress(10, 4, enabled) as progress:
            progress.advance()
            progress.show({"loss": 0.5})
            progress.say("saved")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("step 5/10  loss 0.5  left ") and lines[1] == "saved"
