"""What is drawn of each table: functions from tables to titled charts, which draw nothing of a table that is missing.

Of measurements that were repeated the newest counts, for each machine.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from drawing import Panel, agreement, bars, panels
from matplotlib.figure import Figure
from tables import Row, Tables, by_case, column, groups, newest, number

Chart = tuple[str, Figure]  # its title, which is its file's name too
PREDICTED = "predicted_"
MODES = ("forward", "backward", "full")
_OF_MAE = ("mae_settings", "pretrain_settings")  # columns of handover.csv
PARTS = ("prepare", "encoder", "rounds", "backward", "optimizer")


def steps(tables: Tables) -> Iterable[Chart]:
    """Pictures a second, memory and parts of a training step by recipe."""
    for (machine,), found in groups(tables.get("train_step", ()), "machine").items():
        where, rows = short(machine), list(by_case("train_step", found).values())
        for title, name, unit in (
            ("throughput", "pictures_per_second", "pictures a second"),
            ("memory", "peak_mb", "MB at the highest"),
        ):
            yield from _of_each(rows, f"{title} of a training step, {where}", name, unit)
        for (recipe,), some in groups(rows, "recipe").items():
            series = {part: column(some, part) for part in PARTS if any(map(math.isfinite, column(some, part)))}
            if series:
                title = f"parts of a training step of {recipe}, {where}"
                yield title, bars(title, [about(row, "choice") for row in some], series, "ms, median")


def _of_each(rows: Sequence[Row], title: str, name: str, unit: str) -> Iterable[Chart]:
    some = [row for row in rows if math.isfinite(number(row, name))]
    if some:
        yield title, bars(title, [about(row, "recipe", "choice") for row in some], {unit: column(some, name)}, unit)


def memory(tables: Tables) -> Iterable[Chart]:
    rows = by_case("memory", tables.get("memory", ())).values()
    for (machine,), found in groups(rows, "machine").items():
        for (preset,), some in groups(found, "preset").items():
            labels = [
                about(row, "stage", "batch", "masks", "crop", "checkpointing", *_accumulated(row)) for row in some
            ]
            series = {name: column(some, f"{name}_mb") for name in ("predicted", "measured")}
            title = f"memory of {preset}, {short(machine)}"
            yield title, bars(title, labels, series, "MB at the highest")


def _accumulated(row: Row) -> list[str]:
    return ["accumulation"] if number(row, "accumulation") > 1 else []


def predictions(tables: Tables) -> Iterable[Chart]:
    """What was predicted of every table and unit, and what was measured: measured_X, or peak_X of memory.

    Times that the plan's rates were fitted to are no predictions; memory is predicted without a look at the machine.
    """
    for table, rows in tables.items():
        for unit in sorted(
            {name.removeprefix(PREDICTED) for row in rows for name in row if name.startswith(PREDICTED)}
        ):
            series: dict[str, tuple[list[float], list[float]]] = {}
            for row in by_case(table, rows).values():
                predicted = number(row, f"{PREDICTED}{unit}")
                measured = number(row, f"measured_{unit}" if f"measured_{unit}" in row else f"peak_{unit}")
                if predicted > 0 and measured > 0 and not (unit == "ms" and row.get("fitted")):
                    name = f"{row.get('recipe') or row.get('preset')}, {short(row.get('machine', ''))}"
                    for values, x in zip(series.setdefault(name, ([], [])), (predicted, measured), strict=True):
                        values.append(x)
            if series:
                what, goal, shown = ("memory", 0.1, "MB") if unit == "mb" else ("time", 0.2, unit)
                off = [abs(p / m - 1) for pair in series.values() for p, m in zip(*pair, strict=True)]
                title = f"{what} predicted and measured, {table}"
                heading = f"{title}: {len(off)} points, the worst is {max(off):.0%} off"
                yield title, agreement(heading, series, shown, goal)


def plans(tables: Tables) -> Iterable[Chart]:
    """How a training scales and what it costs, as planned; memory of one GPU."""
    found = by_case("plans", [row for row in tables.get("plans", ()) if number(row, "gpus") > 0]).values()
    for (gpu,), some in groups(found, "gpu").items():
        series = {
            ", ".join(name): sorted(same, key=lambda row: number(row, "gpus"))
            for name, same in groups(some, "recipe", "config").items()
        }

        def over_gpus(name: str, lines: dict[str, list[Row]] = series) -> dict[str, tuple[list[float], list[float]]]:
            return {label: (column(same, "gpus"), column(same, name)) for label, same in lines.items()}

        speed = Panel("pictures a second", over_gpus("pictures_per_second"), "GPUs", "", proportional=True)
        title = f"scaling on {gpu}, planned"
        yield title, panels(title, [speed, Panel("days", over_gpus("days"), "GPUs", "")])
        title = f"cost on {gpu}, planned"
        cost = Panel("dollars for the whole training", over_gpus("cost_dollars"), "GPUs", "", log_y=False)
        yield title, panels(title, [cost, Panel("memory of one GPU, GiB", over_gpus("memory_gib"), "GPUs", "", False)])


def peers(tables: Tables) -> Iterable[Chart]:
    """Ours beside what a user would take instead."""
    for (data, machine), found in groups(tables.get("peer_training", ()), "data", "machine").items():
        rows = [row for row in newest(found, "variant") if row["variant"] != "crops"]  # less work a pair: not alike
        for what, name, ratio, unit in (
            ("speed", "rate", "ratio", "(object, round) a second"),
            ("memory", "peak_mb", "memory_ratio", "MB resident at the highest, both ranks"),
        ):
            labels = [f"{row['variant']} (×{row[ratio]})" for row in rows]
            series = {"ours": column(rows, f"ours_{name}"), "the peer": column(rows, f"peer_{name}")}
            title = f"ours and peers, {what}, {data}, {short(machine)}"
            yield title, bars(title, labels, series, unit)


def data(tables: Tables) -> Iterable[Chart]:
    for (machine,), found in groups(tables.get("data", ()), "machine").items():
        rows = newest(found, "case", "masks", "drawn")
        labels = [f"{row['case']}, {row['drawn']} masks" for row in rows]
        title = f"pictures from JPEG and JSON to a batch, one core, {short(machine)}"
        yield title, bars(title, labels, {"": column(rows, "pictures_per_second")}, "pictures a second")


def pictures(tables: Tables) -> Iterable[Chart]:
    for (machine,), found in groups(tables.get("pictures", ()), "machine").items():
        rows = newest(found, "kind", "case")
        labels = [f"{row['kind']}, {row['case']}" for row in rows]
        title = f"whole pictures from JPEG to a batch, one core, {short(machine)}"
        yield title, bars(title, labels, {"": column(rows, "pictures_per_second")}, "pictures a second")


def checkpoints(tables: Tables) -> Iterable[Chart]:
    for (machine,), found in groups(tables.get("save", ()), "machine").items():
        rows = newest(found, "preset", "crop", "way")
        labels = [f"{row['preset']}, {row['way']}" for row in rows]
        series = {"stands still": column(rows, "stall_s"), "is lost in all": column(rows, "lost_s")}
        title = f"time of the training that a checkpoint costs, {short(machine)}"
        yield title, bars(title, labels, series, "seconds")


def tracking(tables: Tables) -> Iterable[Chart]:
    for (machine,), found in groups(tables.get("tracking", ()), "machine").items():
        rows = newest(found, "way")
        title = f"a training step with MLflow, {short(machine)}"
        yield title, bars(title, [row["way"] for row in rows], {"": column(rows, "step_ms")}, "ms, median")


def communication(tables: Tables) -> Iterable[Chart]:
    for (machine, backend, ranks), found in groups(
        tables.get("communication", ()), "machine", "backend", "ranks"
    ).items():
        rows = sorted(newest(found, "recipe", "config", "op", "bytes"), key=lambda row: number(row, "bytes"))
        by_op = groups([row for row in rows if number(row, "bytes") >= 1024], "op")
        speed = {
            op: ([x / 1e6 for x in column(some, "bytes")], column(some, "bus_gb_s")) for (op,), some in by_op.items()
        }
        taken = {op: ([x / 1e6 for x in column(some, "bytes")], column(some, "ms_50")) for (op,), some in by_op.items()}
        title = f"messages of the engine's steps, {backend}, {ranks} ranks, {short(machine)}"
        yield (
            title,
            panels(title, [Panel("bus bandwidth, GB/s", speed, "MB", ""), Panel("median time, ms", taken, "MB", "")]),
        )


def kernels(tables: Tables) -> Iterable[Chart]:
    """Milliseconds of each op, a group a provider and a bar a mode. Triton's interpreter on a CPU is left out."""
    on_gpu = (row for row in tables.get("kernels", ()) if row["device"] == "cuda")
    measured = newest(on_gpu, "op", "shape", "provider", "mode")
    for (machine, op, shape), found in groups(measured, "machine", "op", "shape").items():
        of_mode = {mode: {row["provider"]: row for row in found if row["mode"] == mode} for mode in MODES}
        providers = list(dict.fromkeys(row["provider"] for row in found))
        series = {
            mode: [number(by[name], "ms_50") if name in by else math.nan for name in providers]
            for mode, by in of_mode.items()
            if by
        }
        title = f"{op}, {shape}, {short(machine)}"
        yield title, bars(title, providers, series, "ms, median")


def kernels_predicted(tables: Tables) -> Iterable[Chart]:
    rows = newest(tables.get("kernels_predicted", ()), "gpu", "kernel", "size")
    for (gpu,), found in groups(rows, "gpu").items():
        labels = [f"{row['kernel']} {row['size']}" for row in found]
        series = {
            "floor": column(found, "floor_us"),
            "units overlap": column(found, "overlapped_us"),
            "units in turn": column(found, "in_turn_us"),
        }
        heading = f"kernels on {gpu}, predicted from machine code, not measured"
        yield f"kernels predicted {gpu}", bars(heading, labels, series, "microseconds", log=True)


def saved_bytes(tables: Tables) -> Iterable[Chart]:
    rows = newest(tables.get("saved_bytes", ()), "op", "provider")
    if rows:
        labels = [f"{row['op']}, {row['provider']}" for row in rows]
        title = "kept from forward to backward, ViT-H, one picture"
        yield "saved bytes", bars(title, labels, {"MB": column(rows, "mb")}, "MB", log=True)


def learning(tables: Tables) -> Iterable[Chart]:
    for (run,), found in groups(newest(tables.get("learning", ()), "run", "model"), "run").items():
        measures = [name for name in found[0] if name.startswith("miou")]
        series = {row["model"]: [number(row, name) for name in measures] for row in found}
        yield f"learning {run}", bars(f"mean IoU on val, {run}", measures, series, "percent")


def handover(tables: Tables) -> Iterable[Chart]:
    """SAM from a pre-trained encoder and from nothing, on the way: means over the seeds."""
    rows = newest(tables.get("handover", ()), "data", "steps", "settings", *_OF_MAE, "start", "seed", "step")
    for (machine, data, steps), found in groups(rows, "machine", "data", "steps").items():
        drawn = []
        for name, what in (("miou@1", "1 click"), ("miou@8", "8 clicks")):
            series = {}
            for start, own in groups(found, "start", *_OF_MAE).items():
                at = {step: column(some, name) for (step,), some in groups(own, "step").items()}
                means = [statistics.mean(values) for values in at.values()]
                series[" ".join(filter(None, start))] = ([float(step) for step in at], means)
            drawn.append(Panel(f"mIoU after {what}, percent", series, "steps", "", log_y=False))
        title = f"SAM from MAE and from scratch, {data}, {steps} steps, {short(machine)}"
        yield title, panels(title, drawn)


def about(row: Row, *names: str) -> str:
    """What a row says of itself: words as they are, numbers with their names."""
    said = ((name, row.get(name, "")) for name in names)
    return ", ".join(
        value if not value.isdigit() else f"{name.replace('_', ' ')} {value}" for name, value in said if value
    )


def short(machine: str) -> str:
    """The accelerator, or the processor."""
    return machine.partition(" / ")[0].replace("(R)", "").replace("  ", " ")
