"""What became worse from one set of results to another: ``report.py --compare OLD NEW``.

Rows are compared that were measured on the same machine and say the same of what was measured; of repeated ones the
newest. ``tables.RESULTS_OF`` says which columns count, and which way is better. A row that is no longer there counts as
one that became worse, if its table has others of its machine: what fails leaves no row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tables import Case, Row, Tables, by_case, key, number, results_of


@dataclass(frozen=True)
class Change:
    table: str
    about: str
    measure: str
    old: float
    new: float
    worse: float  # by this part of the old value (of a ``nearer`` column: by so much); negative: better
    machine: str

    def __str__(self) -> str:
        return (
            f"{self.table}.csv: {self.measure} of {self.about}: {self.old:g} to {self.new:g} "
            f"({self.worse:+.0%}) on {self.machine}"
        )


def compare(old: Tables, new: Tables, threshold: float) -> int:
    """Say what became worse by more than ``threshold`` (0.1: a tenth), or has gone. Returns how much has."""
    found, rows, gone = [], 0, []
    for table in sorted(old):
        if table not in new:
            print(f"{table}.csv: only the old ones have it")
            continue
        before, after = by_case(table, old[table]), by_case(table, new[table])
        same = before.keys() & after.keys()
        rows += len(same)
        if not same:
            print(f"{table}.csv: no row is about the same thing on the same machine in both")
        for place in sorted(same):
            found += changes(table, before[place], after[place])
        machines = {machine for machine, _ in after}
        for machine, about in sorted(before.keys() - after.keys()):
            if machine in machines:
                gone.append(f"{table}.csv: {_said(about)} on {machine or 'any machine'}")
    worse = sorted((change for change in found if change.worse > threshold), key=lambda change: -change.worse)
    better = sum(change.worse < -threshold for change in found)
    for change in worse:
        print(f"WORSE  {change}")
    for row in gone:
        print(f"GONE   {row}")
    print(
        f"{rows} rows and {len(found)} figures compared: {len(worse)} worse and {better} better "
        f"by more than {threshold:.0%}{f', {len(gone)} rows gone' if gone else ''}"
    )
    return len(worse) + len(gone)


def changes(table: str, before: Row, after: Row) -> Iterator[Change]:
    """Of every figure that both rows have and that has a better and a worse."""
    about = _said(key(table, after))
    for name in after:
        kind = results_of(table).of(name)
        old, new = number(before, name), number(after, name)
        if kind in ("lower", "higher") and not math.isnan(old) and not math.isnan(new):
            step = new - old if kind == "lower" else old - new
            # From nothing to something, failures say, is worse than any part of nothing.
            worse = step / abs(old) if old else math.copysign(math.inf, step) if step else 0.0
            yield Change(table, about, name, old, new, worse, after.get("machine", "any machine"))
        elif kind == "nearer" and not math.isnan(old) and not math.isnan(new):
            yield Change(table, about, name, old, new, abs(new) - abs(old), after.get("machine", "any machine"))


def _said(about: Case) -> str:
    return ", ".join(value for _, value in about)
