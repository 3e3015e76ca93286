"""A plan as text, as JSON and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam_ds.config.schema import Recipe
from sam_ds.optim.schedule import batch_note, peak_lr
from sam_ds.planning.advice import Advice
from sam_ds.planning.machines import GIB
from sam_ds.planning.plan import Plan, not_planned
from sam_ds.planning.step_time import assumptions

# What the written plans that the recipes follow say of their length, and what the papers report.
CLAIMS = {
    "sam_vit_h": ("68 hours on 256 A100; another document has 50,000 GPU hours", 68.0 * 256),
    "meta_sam_large": ("six weeks on 128 A100", 6 * 7 * 24.0 * 128),
    "mae_vit_l": ("31 hours on 128 TPU-v3 cores, as the paper has it", 31.0 * 128),
    "mae_vit_h": ("34.5 hours for half as many epochs on 128 TPU-v3 cores, as the paper has it", 69.0 * 128),
}


def to_text(plan: Plan, advice: Sequence[Advice]) -> str:
    """A screen for a terminal."""
    recipe, config = plan.recipe, plan.config
    lines = [
        f"{recipe.name} with {config.source} on {plan.world} {plan.gpu.name} ({plan.nodes:g} nodes): predicted",
        f"  {plan.parameters / 1e6:,.0f} M parameters, {config.precision}, ZeRO-{config.zero_stage}, activation "
        f"checkpointing {recipe.model.checkpointing}{_masks(recipe)}",
        f"  {plan.batch:,} pictures a step: {config.micro_batch} × {config.accumulation} × {plan.world}; learning rate "
        f"{peak_lr(recipe.optim, plan.batch):g}",
        *([f"  note: {note}"] if (note := batch_note(recipe, plan.batch, config.source)) else []),
        "",
        f"Memory of a GPU, of {plan.gpu.memory / GIB:.1f} GiB",
        *_table(_memory(plan), GIB, "GiB", plan.gpu.memory),
        *([f"  and {_host(plan) / GIB:.1f} GiB of each host's memory"] if plan.memory.host else []),
        "",
        "Time of a step",
        *_table(plan.step_parts, 1e-3, "ms", plan.step_seconds),
        "",
        *_length(plan),
        "",
        *_verdict(plan, advice),
    ]
    return "\n".join(lines)


def _masks(recipe: Recipe) -> str:
    """Of the batches that are planned, where they have any."""
    return f", up to {recipe.data.max_masks} masks a picture" if recipe.task == "segment_images" else ""


def _host(plan: Plan) -> float:
    return plan.memory.host * min(plan.world, plan.gpu.per_node)


def to_json(plan: Plan, advice: Sequence[Advice]) -> dict[str, Any]:
    """Bytes, seconds, dollars."""
    return {
        **_figures(plan),
        "memory": {name: int(size) for name, size in _memory(plan).items()},
        "gpu_memory": int(plan.gpu.memory),
        "host_memory": plan.memory.host,
        "rates": plan.gpu.source,
        "not_planned": not_planned(plan.config, plan.recipe),
        "documents": _claim(plan)[0],
        "step_seconds": {name: round(seconds, 6) for name, seconds in plan.step_parts.items()},
        "parameters": plan.parameters,
        "learning_rate": peak_lr(plan.recipe.optim, plan.batch),
        "note": batch_note(plan.recipe, plan.batch, plan.config.source),
        "checkpoint_bytes": plan.checkpoint_bytes,
        "kept_bytes": plan.kept_bytes,
        "advice": [{"change": x.text, **_figures(x.plan)} for x in advice],
    }


def sweep_rows(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """A line for each number of nodes."""
    return [_figures(plan) for plan in plans]


def sweep_text(plans: Sequence[Plan], advice: Sequence[Sequence[Advice]]) -> str:
    """The scaling curve as a table; ``advice``: of each plan."""
    first = plans[0]
    rows = ["nodes  GPUs  batch  pictures/s  of linear  GiB a GPU     days    dollars"]
    for plan in plans:
        linear = plan.pictures_per_second / (first.pictures_per_second / first.world * plan.world)
        rows.append(
            f"{plan.nodes:5g} {plan.world:5d} {plan.batch:6d} {plan.pictures_per_second:11.1f} {linear:9.0%} "
            f"{plan.needed / GIB:10.1f}{' ' if plan.fits else '!'} {plan.hours / 24:8.1f} {plan.dollars:10,.0f}"
        )
    rows.append(f"all of it predicted; rates of {first.gpu.name}: {first.gpu.source}")
    for plan, own in zip(plans, advice, strict=True):
        if not plan.fits:
            rows += ["", f"{plan.nodes:g} nodes", *_verdict(plan, own)]
    return "\n".join(rows)


def together_rows(phases: Sequence[Sequence[Plan]]) -> list[dict[str, Any]]:
    """Phases that come one after the other, on each number of GPUs."""
    return [
        {
            "gpus": plans[0].world,
            "fits": all(plan.fits for plan in plans),
            "days": round(sum(plan.hours for plan in plans) / 24, 2),
            "gpu_hours": round(sum(plan.gpu_hours for plan in plans)),
            "cost_dollars": round(sum(plan.dollars for plan in plans)),
        }
        for plans in zip(*phases, strict=True)
    ]


def together_text(phases: Sequence[Sequence[Plan]]) -> str:
    """``together_rows`` for people."""
    names = " and ".join(plans[0].recipe.name for plans in phases)
    return "\n".join(
        f"{names} on {row['gpus']} GPUs together: {row['days']:,.1f} days, {row['gpu_hours']:,} GPU hours, about "
        f"${row['cost_dollars']:,}"
        for row in together_rows(phases)
    )


def draw(plans: Sequence[Plan], path: Path) -> None:
    """Memory of a GPU by part, a bar a plan; and with more than one, how pictures a second grow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = 2 if len(plans) > 1 else 1
    figure, axes = pyplot.subplots(1, count, figsize=(7 * count, 4.5), squeeze=False, layout="constrained")
    bars, names = axes[0][0], [f"{plan.world} × {plan.gpu.name}" for plan in plans]
    bottom = [0.0] * len(plans)
    for part in dict.fromkeys(part for plan in plans for part in _memory(plan)):
        heights = [_memory(plan).get(part, 0) / GIB for plan in plans]
        bars.bar(names, heights, 0.6, bottom, label=part)
        bottom = [low + high for low, high in zip(bottom, heights, strict=True)]
    bars.axhline(plans[0].gpu.memory / GIB, color="black", linestyle="--", linewidth=1, label="there is")
    bars.set_ylabel("GiB of a GPU, predicted")
    bars.set_title(f"{plans[0].recipe.name}, ZeRO-{plans[0].config.zero_stage}; rates {plans[0].gpu.source}")
    handles, labels = bars.get_legend_handles_labels()
    bars.legend(handles[::-1], labels[::-1], fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    if count > 1:
        curve, gpus = axes[0][1], [plan.world for plan in plans]
        rates = [plan.pictures_per_second for plan in plans]
        curve.plot(gpus, rates, marker="o", label="predicted")
        curve.plot(gpus, [rates[0] / gpus[0] * n for n in gpus], linestyle="--", color="grey", label="linear")
        curve.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="pictures a second", xticks=gpus)
        curve.set_xticklabels([str(n) for n in gpus])
        curve.set_yticks(rates, [f"{rate:.0f}" for rate in rates])
        curve.minorticks_off()
        curve.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _memory(plan: Plan) -> dict[str, int]:
    slack = {"driver, communication, fragments": plan.reserve} if plan.reserve else {}
    return {**plan.memory.parts, **slack}


def _figures(plan: Plan) -> dict[str, Any]:
    return {
        "recipe": plan.recipe.name,
        "config": plan.config.source,
        "gpu": plan.gpu.name,
        "nodes": int(plan.nodes) if plan.nodes.is_integer() else plan.nodes,
        "gpus": plan.world,
        "batch": plan.batch,
        "fits": plan.fits,
        "memory_gib": round(plan.needed / GIB, 2),
        "step_ms": round(1e3 * plan.step_seconds, 1),
        "pictures_per_second": round(plan.pictures_per_second, 1),
        "mfu": round(plan.utilization, 3),
        "days": round(plan.hours / 24, 2),
        "gpu_hours": round(plan.gpu_hours),
        "cost_dollars": round(plan.dollars),
        "workers": plan.workers,
    }


def _table(parts: dict[str, int] | dict[str, float], unit: float, name: str, whole: float) -> list[str]:
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    total = sum(parts.values())
    return [
        *(f"  {part:32} {value / unit:9.2f} {name}  {value / whole:5.1%}" for part, value in ordered),
        f"  {'together':32} {total / unit:9.2f} {name}  {total / whole:5.1%}",
    ]


def _length(plan: Plan) -> list[str]:
    claim, hours = _claim(plan)
    left_out = not_planned(plan.config, plan.recipe)
    lines = [
        f"{plan.pictures_per_second:,.1f} pictures/s, {plan.pictures_per_second / plan.world:.2f} a GPU, "
        f"MFU {plan.utilization:.1%}" + (f"; {plan.workers} loader process(es) a rank keep up" if plan.workers else ""),
        f"{plan.steps:,} steps in {plan.hours:,.1f} hours ({plan.hours / 24:.1f} days): {plan.gpu_hours:,.0f} GPU "
        f"hours, about ${plan.dollars:,.0f} at ${plan.gpu.price:g} an hour",
        f"a checkpoint is {plan.checkpoint_bytes / GIB:.1f} GiB; the run folder needs {plan.kept_bytes / GIB:.0f} GiB",
        f"rates of {plan.gpu.name}: {plan.gpu.source}",
        *(f"assumed: {what}" for what in assumptions(plan.config, plan.world)),
    ]
    if left_out:
        lines.append(f"not in the plan: {', '.join(left_out)}")
    if claim:
        lines.append(
            f"the documents say {claim}: {hours:,.0f} hours of one, {hours / plan.gpu_hours:.1f} times the plan's"
        )
    return lines


def _claim(plan: Plan) -> tuple[str, float]:
    """What the documents say, and in GPU hours: of A100s, so of no others."""
    return CLAIMS.get(plan.recipe.name, ("", 0.0)) if plan.gpu.name.startswith("A100") else ("", 0.0)


def _verdict(plan: Plan, advice: Sequence[Advice]) -> list[str]:
    if plan.fits:
        first = [f"It fits, with {(plan.gpu.memory - plan.needed) / GIB:.1f} GiB to spare."]
        title = "Faster:"
    else:
        first = [f"IT DOES NOT FIT: {(plan.needed - plan.gpu.memory) / GIB:.1f} GiB too much."]
        title = "It would with:" if advice else "No change that is known here would do."
    lines = [
        f"  {number}. {x.text}: {x.plan.needed / GIB:.1f} GiB, {x.plan.hours / 24:.1f} days, ${x.plan.dollars:,.0f}"
        for number, x in enumerate(advice, start=1)
    ]
    return [*first, *([title] if advice or not plan.fits else []), *lines]
