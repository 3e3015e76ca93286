"""The reliability scorecard: faults planted in real trainings of two ranks on a CPU, seeded, and what became of each.

A training is the real command on a small SAM with ZeRO-2; after every fault it is started again, as a scheduler does,
until it has finished. Then its weights, moments, samples, draws and losses are compared with those of a training that
met no fault: "bit-exact" means all of them are equal.

  python benchmarks/scorecard.py [--trials 20] [--few 5] [--soak 600] [--only NAME …] [--no-save]
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common import RESULTS, ROOT, append_rows
from faults import disks, processes, values
from faults.lab import Lab, Row
from faults.launcher import launched
from faults.lives import Training, live, nursery
from faults.servers import tracking_faults
from faults.soak import soak

from sam_ds.data.synthetic import SyntheticConfig, synthesize

TABLE = ROOT / "docs" / "reliability.md"
COLUMNS = ("fault", "figure", "value", "goal")
ROWS: dict[str, Callable[[Lab], Iterator[Row]]] = {
    "undisturbed": processes.undisturbed,
    "killed_ranks": processes.killed_ranks,
    "killed_saves": disks.killed_saves,
    "damaged_files": disks.damaged_files,
    "full_disks": disks.full_disks,
    "failing_disks": disks.failing_disks,
    "asked_to_stop": processes.asked_to_stop,
    "stopped_ranks": processes.stopped_ranks,
    "not_finite": values.not_finite,
    "flipped_bits": values.flipped_bits,
    "bad_data": values.bad_data,
    "killed_workers": processes.killed_workers,
    "other_worlds": processes.other_worlds,
    "crash_loops": processes.crash_loops,
    "tracking_faults": tracking_faults,
    "launched": launched,
    "soak": soak,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20, help="of a fault that is cheap to try")
    parser.add_argument("--few", type=int, default=5, help="of the others")
    parser.add_argument("--soak", type=float, default=600.0, help="seconds of random faults")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="these rows")
    parser.add_argument("--no-save", action="store_true", help="print only")
    args = parser.parse_args()
    began = time.time()
    found: list[dict[str, object]] = []
    with nursery(), tempfile.TemporaryDirectory(prefix="sam_ds_faults_") as folder:
        lab = laboratory(Path(folder), args.trials, args.few, args.soak)
        for name in args.only:
            start = time.time()
            of_this: list[dict[str, object]] = []
            for row in ROWS[name](lab):
                of_this.append(dataclasses.asdict(row) | {"minutes": round((time.time() - start) / 60, 1)})
                print(f"{row.fault} | {row.figure} | {row.value} | {row.goal} | {row.trials} | {said(row)}", flush=True)
            found += of_this
            if not args.no_save:
                save(of_this)
    print(f"{len(found)} rows, {sum(not row['met'] for row in found)} missed, {(time.time() - began) / 60:.0f} minutes")


def laboratory(folder: Path, trials: int, few: int, soak: float) -> Lab:
    """The pictures, and the training that meets no fault."""
    synthesize(folder / "data", SyntheticConfig(train=12, val=2, size=(96, 128), objects=(3, 6)))
    reference = Training(folder / "reference", folder / "data")
    first = live(reference)
    if not first.finished:
        raise SystemExit(f"the training that meets no fault does not end well:\n{first.said}")
    return Lab(folder, folder / "data", trials, few, soak, reference)


def said(row: Row) -> str:
    return "" if not row.goal else "yes" if row.met else "NO"


def save(found: list[dict[str, object]]) -> None:
    """Put rows in place of those of the same faults, in the results and in the table of ``docs/reliability.md``."""
    path, faults = RESULTS / "reliability.csv", {row["fault"] for row in found}
    older: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="") as file:
            older = [row for row in csv.DictReader(file) if row["fault"] not in faults]
    path.unlink(missing_ok=True)
    append_rows(path, found)
    with path.open(newline="") as file:
        rows = older + list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    mark = "<!-- made by make scorecard -->"
    head = TABLE.read_text(encoding="utf-8").split(mark)[0]
    lines = ["| fault | figure | measured | goal | met | trials |", "|---|---|---|---|---|---|"]
    for row in rows:
        met = "" if not row["goal"] else "yes" if row["met"] == "True" else "NO"
        lines.append("| " + " | ".join((*(row[name] for name in COLUMNS), met, row["trials"])) + " |")
    TABLE.write_text(f"{head}{mark}\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
