"""metrics.jsonl: written line by line, read back after crashes and resumes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sam_ds.tracking.journal import NAME, Journal, read_lines, read_metrics


def test_lines_of_a_step_add_up(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.metrics(1, {"loss": 2.0})
    journal.metrics(2, {"loss": math.nan, "lr": 0.1})
    journal.metrics(2, {"eval/miou@1": 0.5})
    journal.artifact(tmp_path / "pictures" / "a.png")
    rows = read_metrics(tmp_path / NAME)  # before closing: every line is out at once
    assert rows[0] == {"step": 1, "loss": 2.0}
    assert rows[1]["eval/miou@1"] == 0.5 and math.isnan(rows[1]["loss"])
    lines = [line for line, _ in read_lines(tmp_path / NAME)]
    assert lines[-1]["artifact"] == "pictures/a.png" and lines[-1]["step"] == 2
    assert "NaN" not in (tmp_path / NAME).read_text()  # no JSON


def test_a_resumed_run_hides_what_it_does_again(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    for step in range(1, 6):
        first.metrics(step, {"loss": float(step)})
    second = Journal(tmp_path, resumed_at=3)
    second.metrics(4, {"loss": 40.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path / NAME)] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_a_torn_last_line_costs_only_itself(tmp_path: Path) -> None:
    Journal(tmp_path).metrics(1, {"loss": 1.0})
    with (tmp_path / NAME).open("a") as file:
        file.write('{"step": 2, "lo')
    assert len(read_metrics(tmp_path / NAME)) == 1
    Journal(tmp_path, resumed_at=1).metrics(2, {"loss": 2.0})
    assert [row["loss"] for row in read_metrics(tmp_path / NAME)] == [1.0, 2.0]


def test_reading_goes_on_from_an_offset(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.metrics(1, {"loss": 1.0})
    (_, offset), *_ = read_lines(tmp_path / NAME)
    journal.metrics(2, {"loss": 2.0})
    assert [line["step"] for line, _ in read_lines(tmp_path / NAME, offset)] == [2]


def test_what_a_full_disk_does_not_take_is_written_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(tmp_path)
    journal._file = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115
    journal.metrics(1, {"loss": 1.0})
    journal.metrics(2, {"loss": 2.0})
    assert capsys.readouterr().err.count("No space left") == 1
    journal._file = (tmp_path / NAME).open("ab", buffering=0)
    journal.metrics(3, {"loss": 3.0})
    assert [row["step"] for row in read_metrics(tmp_path / NAME)] == [1, 2, 3]
    journal.close()
