"""What the runs of bench_peer_training.py come to: rates, memory, and their ratios."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from typing import Any

WORLD = 2  # ranks of every run


@dataclasses.dataclass(frozen=True)
class Figures:
    """One run of a case."""

    rate: float  # (object, round) pairs a second of the clock, all ranks
    cpu_rate: float  # the same a second of CPU time, times the ranks: what the clock would show without waiting
    peak_mb: float  # all ranks
    rank_mb: float  # the largest rank
    held_mb: float  # of it decoded pictures and masks that only the peer keeps, all ranks
    parameters: int
    losses: tuple[float, float]  # of rank 0, in the first and the last step


def figures(results: list[dict[str, Any]], rounds: int) -> Figures:
    """Of what the ranks of a run wrote. A step's time is its slowest rank's, its CPU time that of all."""
    steps = zip(*(zip(r["objects"], r["wall"], r["cpu"], strict=True) for r in results), strict=True)
    rates, cpu_rates = [], []
    for step in steps:
        objects, wall, cpu = zip(*step, strict=True)
        rates.append(sum(objects) * rounds / max(wall))
        cpu_rates.append(sum(objects) * rounds / sum(cpu) * len(results))
    losses = results[0]["loss"]
    return Figures(
        rate=statistics.median(rates),
        cpu_rate=statistics.median(cpu_rates),
        peak_mb=sum(result["peak_mb"] for result in results),
        rank_mb=max(result["peak_mb"] for result in results),
        held_mb=sum(result["held_mb"] for result in results),
        parameters=results[0]["parameters"],
        losses=(losses[0], losses[-1]),
    )


def show(name: str, turn: int, run: Figures) -> None:
    first, last = run.losses
    print(
        f"run {turn + 1}  {name:18} {run.rate:7.1f} a second  {run.cpu_rate:7.1f} a CPU second × {WORLD}"
        f"  {run.peak_mb:6.0f} MB  loss {first:.3f} to {last:.3f}",
        flush=True,
    )


def compare(
    variant: str, sides: tuple[list[str], list[str]], runs: dict[str, list[Figures]], args: argparse.Namespace
) -> dict[str, Any]:
    """A row of the table: medians over the runs, and the range of the ratios of runs that followed each other."""

    def rate(run: Figures) -> float:
        return run.cpu_rate if args.cpu_time else run.rate

    def median(case: str, field: str) -> float:
        return statistics.median(getattr(run, field) for run in runs[case])

    ours, peer = (max(cases, key=lambda case: statistics.median(rate(run) for run in runs[case])) for cases in sides)
    row: dict[str, Any] = {"variant": variant, "ours_case": ours, "peer_case": peer}
    for side, case in (("ours", ours), ("peer", peer)):
        row |= {f"{side}_{field}": round(median(case, field), 1) for field in ("rate", "cpu_rate")}
        row |= {f"{side}_{field}": round(median(case, field)) for field in ("peak_mb", "rank_mb", "held_mb")}
    ratios = [rate(a) / rate(b) for a, b in zip(runs[ours], runs[peer], strict=True)]
    kind = "cpu_rate" if args.cpu_time else "rate"
    row |= {
        "ratio": round(median(ours, kind) / median(peer, kind), 2),
        "ratio_low": round(min(ratios), 2),
        "ratio_high": round(max(ratios), 2),
        "memory_ratio": round(median(ours, "peak_mb") / median(peer, "peak_mb"), 2),
        "parameters": runs[ours][0].parameters,
    }
    options = ("cpu_time", "image_size", "masks", "pictures", "rounds", "workers", "steps", "repeats")
    return row | {name: getattr(args, name) for name in options}


def report(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    print(
        f"\n{rows[0]['data']}, {args.image_size} px, {WORLD} ranks × {args.pictures} pictures × {args.masks} objects × "
        f"{args.rounds} rounds, {rows[0]['parameters']:,} parameters; medians of {args.repeats} runs of {args.steps} "
        f"steps; ratios of {'CPU time' if args.cpu_time else 'wall time'}"
    )
    print(
        "              (object, round) a second                "
        f"a CPU second × {WORLD}  most memory, MB, of the ranks (one)"
    )
    print("variant          ours    peer   ratio (range)           ours    peer          ours         peer  ratio")
    for row in rows:
        spread = f"({row['ratio_low']:.2f}–{row['ratio_high']:.2f})"
        ours, peer = (f"{row[f'{side}_peak_mb']} ({row[f'{side}_rank_mb']})" for side in ("ours", "peer"))
        print(
            f"{row['variant']:13} {row['ours_rate']:7.1f} {row['peer_rate']:7.1f} {row['ratio']:7.2f} {spread:13}"
            f" {row['ours_cpu_rate']:10.1f} {row['peer_cpu_rate']:7.1f}"
            f"  {ours:>12} {peer:>12} {row['memory_ratio']:6.2f}"
        )
    for row in rows:
        print(f"{row['variant']}: ours is {row['ours_case']!r}, the peer is {row['peer_case']!r}")
    held = max(row["peer_held_mb"] for row in rows)
    print(f"pictures and masks kept ready are at most {held} MB of the peer's memory")
