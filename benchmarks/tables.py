"""The tables of benchmarks/results: reading them, and which of their columns are results and which say of what."""

from __future__ import annotations

import csv
import io
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from common import ROOT

Row = dict[str, str]
Tables = dict[str, list[Row]]  # by the file's name without .csv
Case = tuple[tuple[str, str], ...]  # columns that say what a row is about, and their values

STAMPS = ("machine", "versions", "commit", "date")  # what ``append_rows`` adds


@dataclass(frozen=True)
class Results:
    """Patterns of the columns that a benchmark measures. The others say what was measured: a row's key."""

    lower: tuple[str, ...] = ()  # is better
    higher: tuple[str, ...] = ()  # is better
    nearer: tuple[str, ...] = ()  # to nothing is better: what a prediction is off, as a part of what was measured
    other: tuple[str, ...] = ()  # follows from the rest, or is neither good nor bad

    def of(self, column: str) -> str:
        """``lower``, ``higher``, ``nearer``, ``other``, or "" for a column of the key."""
        kinds = {"lower": self.lower, "higher": self.higher, "nearer": self.nearer, "other": self.other}
        return next((kind for kind, some in kinds.items() if any(fnmatch(column, one) for one in some)), "")


_PREDICTED = Results(lower=("measured_*",), nearer=("off_*",), other=("predicted_*", "fitted"))
RESULTS_OF = {
    "communication": Results(lower=("ms_50",), other=("ms_*", "*_gb_s")),
    "data": Results(lower=("ms",), other=("pictures_per_second", "times_baseline", "part_of_floor")),
    "downstream": Results(higher=("ap*", "miou", "pixel_accuracy"), other=("minutes",)),
    "fuzz": Results(lower=("failures",), other=("cases", "accepted", "refused", "seconds")),
    "handover": Results(higher=("miou@*",), other=("minutes", "mae_steps", "mae_minutes")),
    "kernels": Results(lower=("ms_50", "peak_mb", "saved_mb"), other=("ms_*", "tflops", "gb_s", "of_floor")),
    "kernels_predicted": Results(
        lower=("overlapped_us", "in_turn_us"),
        other=("floor_us", "of_floor", "slowest_unit", "programs", "warps_at_once"),
    ),
    "kernels_static": Results(
        lower=("spilled", "atomics", "instructions", "loop_instructions"),
        other=("block_*", "num_*", "registers", "shared", "matrix", "warpgroup", "special", "loop*", "once_*"),
    ),
    "learning": Results(higher=("miou@*",), other=("minutes",)),
    "memory": _PREDICTED,
    "peer_training": Results(
        lower=("memory_ratio",), higher=("ratio", "ours_rate"), other=("ours_*", "peer_*", "ratio_*", "parameters")
    ),
    "pictures": Results(lower=("ms",), other=("kilobytes", "pictures_per_second", "times_baseline")),
    "plans": Results(
        lower=("memory_gib", "days", "cost_dollars"),
        higher=("fits", "pictures_per_second"),
        other=("step_ms", "mfu", "gpu_hours", "workers"),
    ),
    "pretraining": Results(lower=("loss",), higher=("psnr",), other=("minutes",)),
    "reliability": Results(higher=("met",), other=("value", "trials", "minutes")),
    "save": Results(lower=("stall_s", "lost_s"), other=("checkpoint_mb", "step_s", "*_steps")),
    "saved_bytes": Results(lower=("mb",), other=("times_ours",)),
    "tracking": Results(lower=("of_without", "call_us"), other=("step_ms",)),
    "train_step": Results(
        lower=("peak_mb",),
        higher=("pictures_per_second",),
        other=("predicted_*", "prepare", "encoder", "rounds", "backward", "optimizer"),
    ),
}


def results_of(table: str) -> Results:
    """Of a table that is not listed, what was measured beside a prediction."""
    return RESULTS_OF.get(table, _PREDICTED)


def key(table: str, row: Row) -> Case:
    """What a row is about, without where and when."""
    results = results_of(table)
    return tuple((name, value) for name, value in row.items() if value and name not in STAMPS and not results.of(name))


def load(where: str) -> Tables:
    """The tables of a folder, or of a git revision's benchmarks/results.

    Raises:
        ValueError: it is neither.
    """
    if Path(where).is_dir():
        return {path.stem: read(path.read_text(encoding="utf-8")) for path in sorted(Path(where).glob("*.csv"))}
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", where, "benchmarks/results"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"{where}: neither a folder nor a git revision with benchmarks/results")
    found: Tables = {}
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".csv") else None
            if file is not None:
                found[Path(member.name).stem] = read(file.read().decode())
    return found


def read(text: str) -> list[Row]:
    return [{name: value or "" for name, value in row.items()} for row in csv.DictReader(io.StringIO(text))]


def newest(rows: Iterable[Row], *names: str) -> list[Row]:
    """The last row of each machine and of each value of the named columns."""
    return list({tuple(row.get(name, "") for name in ("machine", *names)): row for row in rows}.values())


def by_case(table: str, rows: Iterable[Row]) -> dict[tuple[str, Case], Row]:
    """The last row of each machine and of each thing that was measured."""
    return {(row.get("machine", ""), key(table, row)): row for row in rows}


def groups(rows: Iterable[Row], *names: str) -> dict[tuple[str, ...], list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(name, "") for name in names), []).append(row)
    return found


def number(row: Row, name: str) -> float:
    """NaN where there is none; yes and no are 1 and 0."""
    text = row.get(name, "")
    try:
        return float({"True": "1", "False": "0"}.get(text, text) or "nan")
    except ValueError:
        return float("nan")


def column(rows: Iterable[Row], name: str) -> list[float]:
    return [number(row, name) for row in rows]
