"""Charts (PNG) and one page (HTML, all in one file) of what stands in benchmarks/results.

Of measurements that were repeated the newest counts, for each machine. What was predicted and not measured says so, and
what ran in Triton's interpreter on a CPU, whose times mean nothing, is left out.

  python benchmarks/report.py [--output benchmarks/report]
"""

from __future__ import annotations

import argparse
import base64
import csv
import html
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from common import RESULTS, ROOT
from matplotlib.figure import Figure

Row = dict[str, str]
Chart = tuple[str, Figure]  # its title, which is its file's name too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the tables are")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "report")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    sections = []
    for path in sorted(args.results.glob("*.csv")):
        rows = read(path)
        charts = list(CHARTS.get(path.stem, no_charts)(rows))
        for title, figure in charts:
            figure.savefig(args.output / f"{title.replace(' ', '_')}.png", dpi=110)
        sections.append(section(path.stem, rows, charts))
    page = args.output / "index.html"
    page.write_text(PAGE.format(sections="\n".join(sections)), encoding="utf-8")
    print(f"{page}: {len(sections)} tables")


def read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def newest(rows: Iterable[Row], *keys: str) -> list[Row]:
    """The last row of each machine and key, in order."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = tuple(row[name] for name in ("machine", *keys))
        found.pop(key, None)
        found[key] = row
    return list(found.values())


def groups(rows: Iterable[Row], *keys: str) -> dict[tuple[str, ...], list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in keys), []).append(row)
    return found


def bars(title: str, labels: Sequence[str], series: dict[str, Sequence[float]], unit: str, log: bool = False) -> Figure:
    """Groups of horizontal bars, a group a label and a bar a series; NaN leaves one out."""
    thick = 0.8 / len(series)
    figure = Figure(figsize=(9, 1.4 + 0.17 * len(labels) * (len(series) + 0.6)), layout="constrained")
    axes = figure.subplots()
    for place, (name, values) in enumerate(series.items()):
        at = [index + thick * (place - (len(series) - 1) / 2) for index in range(len(labels))]
        drawn = axes.barh(at, values, thick, label=name)
        axes.bar_label(drawn, [text(x) for x in values], padding=2, fontsize="x-small")
    axes.set_yticks(range(len(labels)), labels, fontsize="small")
    axes.invert_yaxis()
    axes.set(title=title, xlabel=unit, xscale="log" if log else "linear")
    axes.margins(x=0.12, y=0.01)
    if len(series) > 1:
        axes.legend(fontsize="small")
    return figure


def text(x: float) -> str:
    return "" if math.isnan(x) else f"{x:,.0f}" if x >= 100 else f"{x:.1f}"


def column(rows: Iterable[Row], name: str) -> list[float]:
    return [float(row.get(name) or "nan") for row in rows]


def kernels(rows: list[Row]) -> Iterable[Chart]:
    """Milliseconds of each op, a group a provider and a bar a mode."""
    measured = newest((row for row in rows if row["device"] == "cuda"), "op", "shape", "provider", "mode")
    for (machine, op, shape), found in groups(measured, "machine", "op", "shape").items():
        of_mode = {mode: {row["provider"]: row for row in found if row["mode"] == mode} for mode in MODES}
        providers = list(dict.fromkeys(row["provider"] for row in found))
        series = {
            mode: [float(by[name]["ms_50"]) if name in by else float("nan") for name in providers]
            for mode, by in of_mode.items()
            if by
        }
        gpu = machine.split(" / ")[0]
        yield f"{op} {shape} {gpu}", bars(f"{op}, {shape}, {gpu}", providers, series, "ms, median")


def kernels_predicted(rows: list[Row]) -> Iterable[Chart]:
    for (gpu,), found in groups(rows, "gpu").items():
        labels = [f"{row['kernel']} {row['size']}" for row in found]
        series = {
            "floor": column(found, "floor_us"),
            "units overlap": column(found, "overlapped_us"),
            "units in turn": column(found, "in_turn_us"),
        }
        title = f"kernels on {gpu}, predicted from machine code, not measured"
        yield f"kernels predicted {gpu}", bars(title, labels, series, "microseconds", log=True)


def saved_bytes(rows: list[Row]) -> Iterable[Chart]:
    found = newest(rows, "op", "provider")
    labels = [f"{row['op']}, {row['provider']}" for row in found]
    title = "kept from forward to backward, ViT-H, one picture"
    yield "saved bytes", bars(title, labels, {"MB": column(found, "mb")}, "MB", log=True)


def train_step(rows: list[Row]) -> Iterable[Chart]:
    measured = newest((row for row in rows if " / " in row["machine"]), "recipe", "choice")
    for (machine, recipe), found in groups(measured, "machine", "recipe").items():
        parts = ("prepare", "encoder", "rounds", "backward", "optimizer")
        series = {part: column(found, part) for part in parts}
        gpu = machine.split(" / ")[0]
        title = f"a training step of {recipe}, one picture, {gpu}"
        yield f"train step {recipe} {gpu}", bars(title, [row["choice"] for row in found], series, "ms, median")


def learning(rows: list[Row]) -> Iterable[Chart]:
    for (run,), found in groups(newest(rows, "run", "model"), "run").items():
        measures = [name for name in found[0] if name.startswith("miou")]
        series = {row["model"]: [float(row[name] or "nan") for name in measures] for row in found}
        yield f"learning {run}", bars(f"mean IoU on val, {run}", measures, series, "percent")


def no_charts(rows: list[Row]) -> Iterable[Chart]:
    return ()


MODES = ("forward", "backward", "full")
CHARTS: dict[str, Callable[[list[Row]], Iterable[Chart]]] = {
    "kernels": kernels,
    "kernels_predicted": kernels_predicted,
    "saved_bytes": saved_bytes,
    "train_step": train_step,
    "learning": learning,
}


def section(name: str, rows: list[Row], charts: Iterable[Chart]) -> str:
    """A table of results with its charts in front."""
    pictures = "".join(f'<img alt="{html.escape(title)}" src="{as_link(figure)}">' for title, figure in charts)
    head = "".join(f"<th>{html.escape(key)}</th>" for key in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(value or '')}</td>" for value in row.values()) + "</tr>" for row in rows
    )
    table = f"<details><summary>{len(rows)} rows</summary><table><tr>{head}</tr>{body}</table></details>"
    return f"<h2>{html.escape(name.replace('_', ' '))}</h2>{pictures}{table}"


def as_link(figure: Figure) -> str:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>sam_ds benchmarks</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em }}
img {{ display: block; max-width: 100%; margin: 1em 0 }}
table {{ border-collapse: collapse; font-size: 12px }}
details {{ overflow-x: auto }}
th, td {{ border: 1px solid #ccc; padding: 2px 6px; text-align: left; white-space: nowrap }}
</style>
<h1>sam_ds benchmarks</h1>
{sections}
</html>
"""

if __name__ == "__main__":
    main()
