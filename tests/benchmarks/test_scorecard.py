"""A small sample of the scorecard: faults in real trainings, each of which ends as if there had been none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.contracts.source import ROOT

ROWS = ("killed_ranks", "killed_saves", "damaged_files", "failing_disks", "flipped_bits")


@pytest.mark.launcher
def test_a_sample_of_the_scorecard_misses_nothing() -> None:
    command = [sys.executable, "benchmarks/scorecard.py", "--trials", "1", "--few", "1", "--no-save", "--only", *ROWS]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ", 0 missed," in done.stdout, done.stdout
    assert len(done.stdout.splitlines()) > 10
