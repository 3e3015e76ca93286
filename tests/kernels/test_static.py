"""What the compiler makes of the shipped kernels, without a GPU: no spills, no atomics, no more than last time."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from sam_ds_kernels import configs

ROOT = Path(__file__).resolve().parents[2]
SHARED = {"sm80": 163 * 1024, "sm90": 227 * 1024}  # bytes a program can have
REGISTERS = 65_536  # of a multiprocessor
RATCHET = 1.05  # how much longer machine code may get before somebody has to look
KNOWN = ROOT / "benchmarks" / "results" / "kernels_static.csv"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """A row a kernel, head size and generation."""
    table = tmp_path_factory.mktemp("static") / "table.csv"
    run_compiling("sam_ds_kernels.static", "--csv", str(table))
    with table.open() as file:
        return list(csv.DictReader(file))


def run_compiling(module: str, *arguments: str) -> str:
    """What a module prints. In a process of its own: this one's kernels may be interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def name_of(row: dict[str, str]) -> tuple[str, ...]:
    return row["kernel"], row["generation"], row["dtype"], row["size"]


def test_every_kernel_is_there(rows: list[dict[str, str]]) -> None:
    """Every entry of every file of configs is some row's."""
    assert len(rows) == len({name_of(row) for row in rows}) == 2 * (5 * 6 + 3 * 6 + 3 + 4 * 2)
    looked_at = {(row["generation"], *entry_of(row)) for row in rows}
    for generation in configs.GENERATIONS:
        for kernel, entries in configs.load(generation).items():
            assert {size for of, name, size in looked_at if (of, name) == (generation, kernel)} == set(entries)


def entry_of(row: dict[str, str]) -> tuple[str, str]:
    """The kernel and size under which its config stands."""
    kernel = row["kernel"] if row["kernel"].startswith("mask") else "rel_pos_attention_" + row["kernel"]
    kernel += "_float32" if row["dtype"] == "float32" else ""
    entries = configs.load(row["generation"])[kernel]
    return kernel, min((size for size in entries if int(size) >= int(row["size"])), key=int)


def test_nothing_spills(rows: list[dict[str, str]]) -> None:
    assert {name_of(row): row["spilled"] for row in rows if int(row["spilled"])} == {}


def test_fits(rows: list[dict[str, str]]) -> None:
    for row in rows:
        assert int(row["shared"]) <= SHARED[row["generation"]], name_of(row)
        assert int(row["registers"]) * 32 * int(row["num_warps"]) <= REGISTERS, name_of(row)


def test_deterministic(rows: list[dict[str, str]]) -> None:
    assert {name_of(row) for row in rows if int(row["atomics"])} == set()


def test_copies_ahead_in_the_loop(rows: list[dict[str, str]]) -> None:
    for row in usual(rows):
        assert int(row["loop_copies"]) > 0, name_of(row)


def test_matrix_units_do_what_the_maths_needs_and_no_more(rows: list[dict[str, str]]) -> None:
    """A tile with fewer rows than its warps have is computed twice, which no result shows."""
    for row in usual(rows):
        assert row["loop_macs"] == row["loop_macs_needed"], name_of(row)
        # The 16 channels of 80 that stand alone make too few tiles of a table's gradient for four warps.
        most = int(row["once_macs_needed"]) * (4 / 3 if row["size"] == "80" else 1)
        assert int(row["once_macs_needed"]) <= int(row["once_macs"]) <= most, name_of(row)


def test_loops_are_those_that_the_work_counts(rows: list[dict[str, str]]) -> None:
    """What is said of a loop's trip is said of all of them, and of nothing else."""
    assert {name_of(row): row["loops"] for row in rows if row["loops"] != row["loops_needed"]} == {}


def test_hopper_has_its_own_matrix_instruction(rows: list[dict[str, str]]) -> None:
    """It multiplies 64 rows at once: tiles of 32, which is what registers have room for here, go the older way."""
    of_32_rows = {
        ("window_backward_keys", "104"),
        ("window_backward_keys", "128"),
        ("window_backward_queries", "128"),
        ("global_backward_queries", "256"),
        ("global_backward_keys", "256"),
        ("window_backward_queries", "256"),
        ("window_backward_keys", "256"),
    }
    bfloat16 = [row for row in rows if row["dtype"] == "bfloat16" and not is_mask_loss(row)]
    without = {
        (row["kernel"], row["size"]) for row in bfloat16 if row["warpgroup"] == "0" and row["generation"] == "sm90"
    }
    assert without == of_32_rows


def test_one_exponential_a_score(rows: list[dict[str, str]]) -> None:
    """A few more for each row; a softmax computed in two layouts would double it. A pixel of the loss has three."""
    for row in [*usual(rows), *(row for row in rows if is_mask_loss(row))]:
        scores = int(row["loop_scores"]) / (32 * int(row["num_warps"])) * (3 if is_mask_loss(row) else 1)
        assert scores <= int(row["loop_special"]) <= 1.3 * scores, name_of(row)


def usual(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Attention of bfloat16 up to 128 channels a head. Beyond, small tiles are all that registers have room for."""
    bfloat16 = [row for row in rows if row["dtype"] == "bfloat16" and not is_mask_loss(row)]
    return [row for row in bfloat16 if int(row["size"]) <= 128]


def is_mask_loss(row: dict[str, str]) -> bool:
    return row["kernel"].startswith("mask_loss")


def test_positions_cost_little() -> None:
    """A trip through the global forward's loop, beside one without position terms.

    On sm_90 the terms that seed an accumulator are moved there in every trip, an instruction a score of a thread.
    """
    pairs = json.loads(run_compiling("tests.kernels.no_positions"))
    assert len(pairs) == 8
    for case, (ours, without) in pairs.items():
        assert without < ours <= (1.15 if case.startswith("sm80") else 1.18) * without, case


def test_no_longer_than_before(rows: list[dict[str, str]]) -> None:
    with KNOWN.open() as file:
        table = list(csv.DictReader(file))
    known, version = {name_of(row): row for row in table}, table[0]["triton"]
    if rows[0]["triton"] != version:
        pytest.skip(f"the table is Triton {version}'s, not {rows[0]['triton']}'s")
    for row in rows:
        for column in ("instructions", "loop_instructions"):
            assert int(row[column]) <= RATCHET * int(known[name_of(row)][column]), (
                f"{name_of(row)}: if that is meant, python -m sam_ds_kernels.static --csv {KNOWN.relative_to(ROOT)}"
            )
