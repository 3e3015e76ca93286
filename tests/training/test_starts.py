"""Starts that lead nowhere come to an end."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam_ds.config.errors import UserError
from sam_ds.training.starts import Starts


def test_the_fourth_start_from_one_step_is_refused_with_the_reason(tmp_path: Path) -> None:
    for number in range(3):
        starts = Starts(tmp_path)
        starts.begin(40)
        if number == 2:
            starts.failed("RuntimeError: the GPU\nfell off")
    with pytest.raises(UserError, match=r"3 times from step 40 .*RuntimeError: the GPU fell off.*starts.jsonl"):
        Starts(tmp_path).begin(40)
    Starts(tmp_path).begin(50)  # it came further


def test_a_killed_training_leaves_no_word(tmp_path: Path) -> None:
    for _ in range(3):
        Starts(tmp_path).begin(0)
    with pytest.raises(UserError, match="it left no word"):
        Starts(tmp_path).begin(0)


def test_mistakes_do_not_count_and_the_watchdog_is_heard(tmp_path: Path) -> None:
    for _ in range(9):
        starts = Starts(tmp_path)
        starts.begin(0)
        with pytest.raises(UserError), starts.opening():
            raise UserError("another batch")
    for _ in range(3):
        Starts(tmp_path).begin(0)
    (tmp_path / "stacks_rank_00000.txt").write_text("rank 3 (node-7) is stuck\n\nThread 1\n")
    with pytest.raises(UserError, match=r"last: rank 3 \(node-7\) is stuck"):
        Starts(tmp_path).begin(0)


def test_a_checkpoint_ends_the_count(tmp_path: Path) -> None:
    for _ in range(9):
        starts = Starts(tmp_path)
        starts.begin(0)
        starts.progressed()
