"""What a training counts, and which checkpoint it goes on from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from sam_ds import recipes
from sam_ds.config import recipe_file
from sam_ds.config.errors import UserError
from sam_ds.config.folders import make_writable
from sam_ds.config.schema import Recipe
from sam_ds.storage.checkpoints import step_folder
from sam_ds.training.progress import Progress
from sam_ds.training.restore import changed_settings
from sam_ds.training.state import RunFolder, TrainState
from tests.storage.cases import complete


def _checkpoint(root: Path, step: int) -> Path:
    return complete(step_folder(root / "checkpoints", step), step)


def test_steps_and_skipped_steps_are_counted() -> None:
    state = TrainState().after(8, skipped=False).after(8, skipped=True).after(8, skipped=True)
    assert state == TrainState(step=3, pictures=24, skipped=2, skipped_in_a_row=2)
    assert state.after(8, skipped=False).skipped_in_a_row == 0
    assert TrainState(step=3, **state.progress()) == state


def test_auto_goes_on_from_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.checkpoints_for("auto") == folder.checkpoints_for("never") == []
    oldest = _checkpoint(tmp_path, 5)
    newest = _checkpoint(tmp_path, 20)
    (folder.checkpoints / "step_00000030.partial").mkdir()
    (folder.checkpoints / "step_00000040").mkdir()
    assert folder.checkpoints_for("auto") == [newest, oldest]


def test_never_does_not_write_over_a_training(tmp_path: Path) -> None:
    _checkpoint(tmp_path, 5)
    with pytest.raises(UserError, match=r"to step 5.*--output"):
        RunFolder(tmp_path).checkpoints_for("never")


def test_a_path_may_name_a_run_or_a_checkpoint(tmp_path: Path) -> None:
    first = _checkpoint(tmp_path / "other", 5)
    newest = _checkpoint(tmp_path / "other", 20)
    folder = RunFolder(tmp_path / "run")
    assert folder.checkpoints_for(str(first)) == [first]
    assert folder.checkpoints_for(str(tmp_path / "other")) == [newest]
    with pytest.raises(UserError, match="no complete checkpoint"):
        folder.checkpoints_for(str(tmp_path / "nothing"))


def test_a_path_does_not_lead_before_later_checkpoints(tmp_path: Path) -> None:
    """They would count as the newest: pruning would delete what is trained from the path on."""
    early = _checkpoint(tmp_path / "run", 5)
    _checkpoint(tmp_path / "run", 20)
    other = _checkpoint(tmp_path / "other", 10)
    folder = RunFolder(tmp_path / "run")
    for source in (early, other):
        with pytest.raises(UserError, match=r"later checkpoints \(to step 20\).*--output") as said:
            folder.checkpoints_for(str(source))
        assert "\n" not in str(said.value)
    assert folder.checkpoints_for(str(tmp_path / "run")) != []
    assert folder.owns(early) and not folder.owns(other)


def _measured(path: Path, clicks: tuple[int, ...] = (1, 3)) -> RunFolder:
    """The folder of a training that was measured up to step 20."""
    folder = RunFolder(path)
    make_writable(folder.path)
    folder.start(_recipe(clicks), {}, {}, None)
    for title in ("disc", "untrained", "step 10", "step 20"):
        folder.add_evaluation(title, {f"miou@{click}": 0.5 for click in clicks})
    for name in ("metrics.jsonl", "mlflow.json"):
        (path / name).write_text("{}\n")
    return folder


def _recipe(clicks: tuple[int, ...], drawn: int = 8) -> Recipe:
    recipe = recipes.get("tiny")
    return dataclasses.replace(recipe, eval=dataclasses.replace(recipe.eval, clicks=clicks, pictures=drawn))


def test_a_new_training_does_not_take_over_another_ones_numbers(tmp_path: Path) -> None:
    folder = _measured(tmp_path)
    folder.start(_recipe((1, 3)), {}, {}, None)
    assert folder.evaluations() == {}
    for name in ("evaluations.json", "metrics.jsonl", "mlflow.json"):
        assert not (tmp_path / name).exists() and (tmp_path / f"{name}.1").is_file()
    folder.add_evaluation("disc", {"miou@1": 0.25})
    folder.start(_recipe((1, 3)), {}, {}, None)
    assert len(json.loads((tmp_path / "evaluations.json.1").read_text())) == 4  # and none is written over
    assert (tmp_path / "evaluations.json.2").is_file()


def test_numbers_of_later_steps_are_dropped(tmp_path: Path) -> None:
    folder = _measured(tmp_path)
    folder.start(_recipe((1, 3), drawn=2), {}, {}, 10)
    assert list(folder.evaluations()) == ["disc", "untrained", "step 10"]
    assert (tmp_path / "metrics.jsonl").is_file() and (tmp_path / "mlflow.json").is_file()


def test_numbers_of_other_evaluations_are_dropped(tmp_path: Path) -> None:
    folder = _measured(tmp_path)
    folder.start(_recipe((1, 5)), {}, {}, 20)
    assert folder.evaluations() == {}


def test_what_classes_are_called_is_written_down(tmp_path: Path) -> None:
    folder = _measured(tmp_path)
    assert folder.classes() == []
    folder.add_classes(["n02", "n01"])
    assert folder.classes() == ["n02", "n01"]
    folder.start(_recipe((1, 3)), {}, {}, 10)
    assert folder.classes() == ["n02", "n01"]
    folder.start(_recipe((1, 3)), {}, {}, None)  # another training, which may have none
    assert folder.classes() == []


@pytest.mark.parametrize("text", ["", '["a"', '{"a": 1}', '["a", 1]', '["a", "b", "a"]', "[" * 100_000, "\udcff"])
def test_classes_that_cannot_be_read_are_one_clear_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=f"{path} is damaged") as said:
        RunFolder(tmp_path).classes()
    assert "\n" not in str(said.value)


def test_a_write_that_fails_leaves_the_numbers_there(tmp_path: Path) -> None:
    folder = _measured(tmp_path)
    with pytest.raises(TypeError):
        folder.add_evaluation("step 30", {"miou@1": object()})  # type: ignore[dict-item]
    assert len(folder.evaluations()) == 4
    assert not list(tmp_path.glob("*.partial"))


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=f"{path} cannot be written.*--output"):
            make_writable(path)


def test_settings_that_changed_are_named() -> None:
    recipe = _recipe((1, 3))
    saved = json.loads(json.dumps(recipe_file.to_dict(recipe)))
    assert changed_settings(saved, recipe) == ""
    assert changed_settings(saved, _recipe((1, 5), 2)) == "eval.clicks (1, 3) -> (1, 5), eval.pictures 8 -> 2"
    assert "not comparable" in changed_settings(saved | {"gone": 1}, recipe)


def test_a_log_gets_plain_lines_and_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    for enabled in (True, False):
        with Progress(10, 4, enabled) as progress:
            progress.advance()
            progress.show({"loss": 0.5})
            progress.say("saved")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("step 5/10  loss 0.5  left ") and lines[1] == "saved"
