"""What the compiler makes of the shipped kernels, without a GPU: no spills, no atomics, no more than last time."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).resolve().parents[2]
SHARED = {"sm80": 163 * 1024, "sm90": 227 * 1024}  # bytes a program can have
REGISTERS = 65_536  # of a multiprocessor
RATCHET = 1.05  # how much longer machine code may get before somebody has to look
KNOWN = ROOT / "benchmarks" / "results" / "kernels_static.csv"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """A row a kernel, head size and generation. In a process of its own: this one's kernels may be interpreted."""
    table = tmp_path_factory.mktemp("static") / "table.csv"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "sam_ds_kernels.static", "--csv", str(table)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    with table.open() as file:
        return list(csv.DictReader(file))


def name_of(row: dict[str, str]) -> tuple[str, ...]:
    return row["kernel"], row["generation"], row["head_dim"]


def test_every_kernel_is_there(rows: list[dict[str, str]]) -> None:
    assert len(rows) == len({name_of(row) for row in rows}) == 2 * (2 * 6 + 2)


def test_nothing_spills(rows: list[dict[str, str]]) -> None:
    assert {name_of(row): row["spilled"] for row in rows if int(row["spilled"])} == {}


def test_fits(rows: list[dict[str, str]]) -> None:
    for row in rows:
        assert int(row["shared"]) <= SHARED[row["generation"]], name_of(row)
        assert int(row["registers"]) * 32 * int(row["num_warps"]) <= REGISTERS, name_of(row)


def test_deterministic(rows: list[dict[str, str]]) -> None:
    assert {name_of(row) for row in rows if int(row["atomics"])} == set()


def test_attention_runs_on_matrix_units_and_copies_ahead(rows: list[dict[str, str]]) -> None:
    for row in rows:
        if row["head_dim"] != "0":
            assert int(row["matrix"]) > 0 and int(row["copies"]) > 0, name_of(row)


def test_one_softmax(rows: list[dict[str, str]]) -> None:
    """Of a score one exp2. What comes on top is a few for each row; a softmax computed in two layouts doubles it."""
    for row in rows:
        if row["kernel"] == "global_forward":
            scores = int(row["block_m"]) * int(row["block_n"]) // (32 * int(row["num_warps"]))
            assert scores <= int(row["special"]) <= 1.3 * scores, name_of(row)


def test_no_longer_than_before(rows: list[dict[str, str]]) -> None:
    with KNOWN.open() as file:
        table = list(csv.DictReader(file))
    known, version = {name_of(row): int(row["instructions"]) for row in table}, table[0]["triton"]
    if rows[0]["triton"] != version:
        pytest.skip(f"the table is Triton {version}'s, not {rows[0]['triton']}'s")
    for row in rows:
        assert int(row["instructions"]) <= RATCHET * known[name_of(row)], (
            f"{name_of(row)}: if that is meant, python -m sam_ds_kernels.static --csv {KNOWN.relative_to(ROOT)}"
        )
