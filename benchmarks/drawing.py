"""The kinds of charts that the report is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

WIDTH = 9.0  # inches
SMALL = {"fontsize": "small"}
MOST_TICKS = 8  # values of x that are all named


@dataclass(frozen=True)
class Panel:
    """One set of axes: points of each series, joined by lines."""

    title: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]  # x and y
    x: str
    y: str
    log_y: bool = True
    proportional: bool = False  # a dashed line through each series' first point: twice the x, twice the y


def bars(
    title: str, labels: Sequence[str], series: Mapping[str, Sequence[float]], unit: str, log: bool = False
) -> Figure:
    """Groups of horizontal bars, a group a label and a bar a series; NaN leaves one out."""
    thick = 0.8 / len(series)
    figure = Figure(figsize=(WIDTH, 1.4 + 0.17 * len(labels) * (len(series) + 0.6)), layout="constrained")
    axes = figure.subplots()
    for place, (name, values) in enumerate(series.items()):
        at = [index + thick * (place - (len(series) - 1) / 2) for index in range(len(labels))]
        drawn = axes.barh(at, values, thick, label=name)
        axes.bar_label(drawn, [text(x) for x in values], padding=2, fontsize="x-small")
    axes.set_yticks(range(len(labels)), labels, **SMALL)
    axes.invert_yaxis()
    axes.set(title=title, xlabel=unit, xscale="log" if log else "linear")
    axes.margins(x=0.12, y=0.01)
    plain_numbers(axes.xaxis, log)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    if len(series) > 1:
        figure.legend(loc="outside right upper", **SMALL)
    return figure


def panels(title: str, some: Sequence[Panel]) -> Figure:
    """Panels side by side, with one legend below: series of one name have one colour."""
    names = list(dict.fromkeys(name for panel in some for name in panel.series))
    height = 3.6 + 0.22 * -(-len(names) // 2)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(title)
    colours = {name: f"C{place % 10}" for place, name in enumerate(names)}
    for panel, axes in zip(some, figure.subplots(1, len(some), squeeze=False)[0], strict=True):
        _draw(panel, axes, colours)
    handles = {handle.get_label(): handle for axes in figure.axes for handle in axes.get_legend_handles_labels()[0]}
    figure.legend(handles=[handles[name] for name in names], loc="outside lower center", ncols=2, **SMALL)
    return figure


def _draw(panel: Panel, axes: Axes, colours: Mapping[str, str]) -> None:
    for name, (xs, ys) in panel.series.items():
        axes.plot(xs, ys, "o-", markersize=4, color=colours[name], label=name)
        if panel.proportional:
            axes.plot(xs, [ys[0] * x / xs[0] for x in xs], "--", linewidth=1, color=colours[name], alpha=0.5)
    axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y, xscale="log", yscale="log" if panel.log_y else "linear")
    plain_numbers(axes.xaxis, True)
    plain_numbers(axes.yaxis, panel.log_y)
    places = sorted({x for xs, _ in panel.series.values() for x in xs})
    if len(places) <= MOST_TICKS:
        axes.xaxis.set_major_locator(FixedLocator(places))
    axes.grid(alpha=0.3)


def agreement(
    title: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], unit: str, goal: float
) -> Figure:
    """What was measured over what was predicted; the band is where they differ by at most ``goal``."""
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    axes = figure.subplots()
    every = [x for pair in series.values() for values in pair for x in values]
    ends = [0.7 * min(every), 1.4 * max(every)]
    axes.plot(ends, ends, color="0.4", linewidth=1)
    low, high = ([x * (1 + sign * goal) for x in ends] for sign in (-1, 1))
    axes.fill_between(ends, low, high, color="0.85", label=f"within {goal:.0%}")
    for name, (predicted, measured) in series.items():
        axes.scatter(predicted, measured, s=22, label=name, zorder=3)
    axes.set(title=title, xlabel=f"predicted, {unit}", ylabel=f"measured, {unit}", xscale="log", yscale="log")
    axes.set(xlim=ends, ylim=ends)
    for axis in (axes.xaxis, axes.yaxis):
        plain_numbers(axis, True)
    axes.grid(alpha=0.3)
    axes.legend(**SMALL)
    return figure


def plain_numbers(axis: Axis, log: bool) -> None:
    """20 and 5,000 where matplotlib has powers of ten."""
    if log:
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,), numticks=12))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if abs(x) >= 10 else f"{x:g}"))


def text(x: float) -> str:
    return "" if math.isnan(x) else f"{x:,.0f}" if x >= 100 else f"{x:.1f}" if x >= 1 or x == 0 else f"{x:.2g}"
