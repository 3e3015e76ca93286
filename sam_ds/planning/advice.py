"""What would make a plan fit, or faster: changes tried one by one on the plan, and ranked by what they bring."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sam_ds.config import deepspeed
from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.config.schema import Recipe
from sam_ds.planning.machines import GPUS, Gpu
from sam_ds.planning.plan import Plan, Tracer, make_plan

_SMALL_BUCKET = 50_000_000


@dataclass(frozen=True)
class Setting:
    """What a plan is made from."""

    recipe: Recipe
    config: DeepSpeedConfig
    gpu: Gpu
    world: int


@dataclass(frozen=True)
class Advice:
    text: str  # the change, as it is written
    plan: Plan  # with the change


def advise(plan: Plan, tracer: Tracer, limit: int = 3) -> list[Advice]:
    """The best changes: those with which it fits, the fastest first; for a plan that fits, only faster ones.

    Changes are combined in pairs where none of them is enough. The global batch and what is trained stay the same, but
    for the number of masks, and that is only tried where nothing fits.
    """
    start = Setting(plan.recipe, plan.config, plan.gpu, plan.world)
    changes = list(_changes(start, fewer_masks=not plan.fits))
    found = [Advice(text, _plan(setting, tracer)) for text, setting in changes]
    good = [x for x in found if x.plan.fits and (not plan.fits or x.plan.hours < 0.99 * plan.hours)]
    if not plan.fits and len(good) < limit:
        pairs = [
            Advice(f"{first}, and {second}", _plan(setting, tracer))
            for first, changed in changes
            for second, setting in _changes(changed, fewer_masks=True)
            if first.partition(" ")[0] < second.partition(" ")[0]
        ]
        good += [x for x in pairs if x.plan.fits]
    return sorted(good, key=lambda x: x.plan.hours)[:limit]


def _plan(setting: Setting, tracer: Tracer) -> Plan:
    return make_plan(setting.recipe, setting.config, setting.gpu, setting.world, tracer)


def _changes(start: Setting, fewer_masks: bool) -> Iterator[tuple[str, Setting]]:
    yield from _of_recipe(start, fewer_masks)
    yield from _of_config(start)
    larger = [gpu for gpu in GPUS.values() if gpu.memory > start.gpu.memory and start.gpu.name in GPUS]
    for gpu in larger:
        yield f"{gpu.name} in place of {start.gpu.name}", dataclasses.replace(start, gpu=gpu)


def _of_recipe(start: Setting, fewer_masks: bool) -> Iterator[tuple[str, Setting]]:
    def change(model: dict[str, Any] | None = None, data: dict[str, Any] | None = None) -> Setting:
        recipe = dataclasses.replace(
            start.recipe,
            model=dataclasses.replace(start.recipe.model, **(model or {})),
            data=dataclasses.replace(start.recipe.data, **(data or {})),
        )
        return dataclasses.replace(start, recipe=recipe)

    if start.recipe.model.checkpointing == "none":
        yield "--set model.checkpointing=torch", change({"checkpointing": "torch"})
    elif start.recipe.model.checkpointing == "torch":
        yield "--set model.checkpointing=none", change({"checkpointing": "none"})
    masks = start.recipe.data.max_masks
    if fewer_masks and masks >= 16 and not start.recipe.curriculum.max_masks:
        yield f"--set data.max_masks={masks // 2} (fewer objects a step)", change(data={"max_masks": masks // 2})


def _of_config(start: Setting) -> Iterator[tuple[str, Setting]]:
    config, stage = start.config, start.config.zero_stage
    micro, accumulation = config.micro_batch, config.accumulation
    sizes = {}
    if micro % 2 == 0:
        sizes[micro // 2] = 2 * accumulation
    if accumulation % 2 == 0:
        sizes[2 * micro] = accumulation // 2
    for size, times in sizes.items():
        keys = {"train_micro_batch_size_per_gpu": size, "gradient_accumulation_steps": times}
        yield f"micro batch {size} × accumulation {times}", _with(start, keys)
    if stage < 3:
        yield "ZeRO stage 3", _with(start, {}, {"stage": 3})
    if stage == 3:
        yield "ZeRO stage 2", _with(start, {}, {"stage": 2, "offload_param": {"device": "none"}})
    if stage and not config.offload_optimizer:
        yield "offload_optimizer to cpu", _with(start, {}, {"offload_optimizer": {"device": "cpu"}})
    if config.offload_optimizer:
        yield "no offload_optimizer", _with(start, {}, {"offload_optimizer": {"device": "none"}})
    if config.raw.get("zero_optimization", {}).get("reduce_bucket_size", 5e8) > _SMALL_BUCKET:
        yield f"reduce_bucket_size {_SMALL_BUCKET:,}", _with(start, {}, {"reduce_bucket_size": _SMALL_BUCKET})
    if start.config.raw.get("communication_data_type") == "fp32" and config.precision != "fp32":
        yield f"communication_data_type {config.precision}", _with(start, {"communication_data_type": config.precision})


def _with(start: Setting, keys: dict[str, Any], zero: dict[str, Any] | None = None) -> Setting:
    raw = copy.deepcopy(start.config.raw)
    raw.update(keys)
    raw.setdefault("zero_optimization", {}).update(zero or {})
    return dataclasses.replace(start, config=deepspeed.parse(raw, start.config.source))
