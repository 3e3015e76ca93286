"""Charts (PNG) and one page (HTML, all in one file) of what stands in benchmarks/results, or what became worse in it.

Of measurements that were repeated the newest counts, for each machine. What was predicted and not measured says so, and
what ran in Triton's interpreter on a CPU, whose times mean nothing, is left out.

  python benchmarks/report.py [--output benchmarks/report]
  python benchmarks/report.py --compare v1.0 benchmarks/results [--threshold 0.1]

OLD and NEW are folders with tables, or git revisions. Figures of the same machine and the same case that are worse by
more than the threshold are listed, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import charts
from charts import Chart
from common import RESULTS, ROOT
from compare import compare
from matplotlib.figure import Figure
from tables import Row, Tables, load


@dataclass(frozen=True)
class Section:
    title: str
    about: str
    tables: tuple[str, ...]  # shown below the charts
    draw: tuple[Callable[[Tables], Iterable[Chart]], ...] = ()
    shown: bool = False  # the tables are the thing to see: open, and without the columns of where and when


SECTIONS = (
    Section(
        "Training steps",
        "Throughput, time of the parts and memory of whole steps, by recipe.",
        ("train_step",),
        (charts.steps,),
    ),
    Section("Memory", "The highest of a step, as planned and as measured.", ("memory",), (charts.memory,)),
    Section(
        "Is the plan right?",
        "What the planner predicts over what was measured. The band is the goal: 10 % for memory, 20 % for time.",
        (),
        (charts.predictions,),
    ),
    Section(
        "Scaling and cost",
        "Planned for whole trainings, not measured. Dashed: twice the GPUs, twice the speed.",
        ("plans",),
        (charts.plans,),
    ),
    Section(
        "Side by side",
        "Ours beside what a user would pick instead: the same data, sizes and work, in one run. "
        "In brackets: ours as a multiple of the peer's.",
        ("peer_training",),
        (charts.peers,),
    ),
    Section(
        "Data", "From bytes on disk to what the trainer takes.", ("data", "pictures"), (charts.data, charts.pictures)
    ),
    Section(
        "Communication",
        "All messages of a real step of the engine, each size timed alone between the ranks of one machine.",
        ("communication",),
        (charts.communication,),
    ),
    Section(
        "Checkpoints and tracking",
        "What they cost the training.",
        ("save", "tracking"),
        (charts.checkpoints, charts.tracking),
    ),
    Section(
        "Kernels",
        "Measured on GPUs where there are measurements, else predicted from the machine code.",
        ("kernels", "kernels_predicted", "kernels_static", "saved_bytes"),
        (charts.kernels, charts.kernels_predicted, charts.saved_bytes),
    ),
    Section("Learning", "Mean IoU by number of clicks.", ("learning",), (charts.learning,)),
    Section(
        "Before and after SAM",
        "Masked autoencoding, what it is worth to SAM, and fine-tunes on boxes and classes.",
        ("pretraining", "handover", "downstream"),
        (charts.handover,),
    ),
    Section("Reliability", "Faults planted in real trainings, and what became of them.", ("reliability",), shown=True),
    Section("Damaged inputs", "Inputs that were damaged on purpose, and what reading them did.", ("fuzz",), shown=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default=str(RESULTS), help="where the tables are: a folder or a git revision")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "report")
    parser.add_argument("--compare", nargs=2, metavar=("OLD", "NEW"), help="draw nothing: say what became worse")
    parser.add_argument("--threshold", type=float, default=0.1, help="how much worse is worth saying; 0.1: a tenth")
    args = parser.parse_args()
    try:
        if args.compare:
            sys.exit(compare(*map(load, args.compare), args.threshold) > 0)
        tables = load(args.results)
    except ValueError as error:
        parser.error(str(error))
    args.output.mkdir(parents=True, exist_ok=True)
    parts = {one.title: section(one, tables, args.output) for one in (*SECTIONS, others(tables))}
    links = " · ".join(f'<a href="#{anchor(title)}">{title}</a>' for title, part in parts.items() if part)
    page = args.output / "index.html"
    page.write_text(PAGE.format(links=links, sections="\n".join(filter(None, parts.values()))), encoding="utf-8")
    print(f"{page}: {len(tables)} tables")


def others(tables: Tables) -> Section:
    """The tables that no section names."""
    named = {name for one in SECTIONS for name in one.tables}
    return Section("Other tables", "", tuple(name for name in tables if name not in named))


def section(one: Section, tables: Tables, output: Path) -> str:
    """A part of the page; empty where there is nothing to show. Its charts are files of ``output`` too."""
    drawn = [(title, png(figure)) for draw in one.draw for title, figure in draw(tables)]
    for title, picture in drawn:
        (output / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', title)}.png").write_bytes(picture)
    shown = [table(name, tables[name], one.shown) for name in one.tables if tables.get(name)]
    if not drawn and not shown:
        return ""
    pictures = "".join(f'<img alt="{html.escape(title)}" src="{as_link(picture)}">' for title, picture in drawn)
    about = f"<p>{html.escape(one.about)}</p>" if one.about else ""
    return f'<h2 id="{anchor(one.title)}">{html.escape(one.title)}</h2>{about}{pictures}{"".join(shown)}'


def anchor(title: str) -> str:
    return re.sub(r"[^a-z]+", "-", title.lower()).strip("-")


def table(name: str, rows: list[Row], shown: bool) -> str:
    columns = [column for column in rows[0] if not (shown and column in ("machine", "versions"))]
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(map(cell, (row[column] for column in columns))) + "</tr>" for row in rows)
    opened = ' open class="shown"' if shown else ""
    return (
        f"<details{opened}><summary>{html.escape(name)}.csv, {len(rows)} rows</summary>"
        f"<table><tr>{head}</tr>{body}</table></details>"
    )


def cell(value: str) -> str:
    kind = {"True": ' class="yes"', "False": ' class="no"'}.get(value, "")
    return f"<td{kind}>{html.escape({'True': 'yes', 'False': 'no'}.get(value, value))}</td>"


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def as_link(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>sam_ds benchmarks</title>
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 66em; padding: 0 1em; color: #222 }}
h2 {{ margin-top: 2em; border-bottom: 1px solid #ddd }}
img {{ display: block; max-width: 100%; margin: 1em 0 }}
table {{ border-collapse: collapse; font-size: 12px; margin: .5em 0 }}
details {{ overflow-x: auto }}
summary {{ cursor: pointer; color: #555 }}
th, td {{ border: 1px solid #ccc; padding: 2px 6px; text-align: left; white-space: nowrap }}
.shown td {{ white-space: normal }}
th {{ background: #f4f4f4 }}
.yes {{ background: #e3f4e3 }} .no {{ background: #f9d9d9 }}
</style>
<h1>sam_ds benchmarks</h1>
<p>{links}</p>
{sections}
</html>
"""

if __name__ == "__main__":
    main()
