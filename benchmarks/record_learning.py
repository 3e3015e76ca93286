"""Add what finished trainings measured to benchmarks/results, and print the README's table of it.

Every row is one model or baseline of one run. learning.csv: mean IoU (percent) over the masks of the evaluation, after
1, 3, 5 and 8 clicks and a box. pretraining.csv: how masked patches were painted, by the loss and by the PSNR (dB).
``minutes`` is the time the steps took, evaluations and saving not counted.

  python benchmarks/record_learning.py runs/tiny_synthetic runs/tiny_nuclei [--no-save]
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

from common import RESULTS, append_rows

from sam_ds.tracking import journal
from sam_ds.tracking.journal import read_metrics

MEASURES = ("miou@1", "miou@3", "miou@5", "miou@8", "miou@box", "miou@1/oracle")
PAINTED = ("psnr", "loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--no-save", action="store_true", help="print only")
    args = parser.parse_args()
    rows = [row for run in args.runs for row in rows_of(run)]
    for table, measures in (("learning", MEASURES), ("pretraining", PAINTED)):
        own = [row for row in rows if measures[0] in row]
        if own:
            print(markdown(own, measures))
        if own and not args.no_save:
            append_rows(RESULTS / f"{table}.csv", own)


def rows_of(run: Path) -> list[dict[str, object]]:
    """One row for each title of a run's evaluations."""
    recipe = json.loads((run / "recipe.json").read_text())
    evaluations = json.loads((run / "evaluations.json").read_text())
    minutes = round(minutes_of(read_metrics(run / journal.NAME)), 1)
    about = {"run": run.name, "recipe": recipe["name"], "steps": recipe["train"]["steps"], "minutes": minutes}
    return [
        about
        | {"model": title}
        | {name: round(100 * values[name], 1) for name in MEASURES if name in values}
        | {name: round(values[name], 3) for name in PAINTED if name in values}
        for title, values in evaluations.items()
    ]


def minutes_of(metrics: list[dict[str, float]]) -> float:
    """The time all steps took: each report has the mean of the steps since the one before."""
    reports = {int(row["step"]): sum(v for name, v in row.items() if name.startswith("time/")) for row in metrics}
    steps = sorted(step for step, seconds in reports.items() if seconds)
    return sum(reports[step] * (step - before) for before, step in itertools.pairwise([0, *steps])) / 60


def markdown(rows: list[dict[str, object]], measures: tuple[str, ...]) -> str:
    names = ["run", "model", "minutes", *measures]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
