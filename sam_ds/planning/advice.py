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
_GPU, _MASKS = "gpu", "masks"  # kinds of change


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
    kinds: tuple[str, ...]


# What is changed, the change as it is written, and what comes of it.
_Change = tuple[str, str, Setting]


def advise(plan: Plan, tracer: Tracer, limit: int = 3) -> list[Advice]:
    """The best changes: those with which it fits, the fastest first; for a plan that fits, only faster ones.

    Those that are not enough are combined in pairs where too few are, and another GPU comes last. The global batch and
    what is trained stay the same, but for the number of masks: that is only tried where the plan does not fit, and
    comes after what changes nothing.
    """
    start = Setting(plan.recipe, plan.config, plan.gpu, plan.world)
    changes = list(_changes(start, smaller=not plan.fits))
    found = [Advice(text, _plan(setting, tracer), (kind,)) for kind, text, setting in changes]
    good = [x for x in found if x.plan.fits and (not plan.fits or x.plan.hours < 0.99 * plan.hours)]
    if not plan.fits and len([x for x in good if x.kinds != (_GPU,)]) < limit:
        enough = {x.text for x in good}
        pairs = [
            Advice(f"{first}, and {second}", _plan(setting, tracer), (kind, other))
            for kind, first, changed in changes
            for other, second, setting in _changes(changed, smaller=True)
            if kind < other and not enough & {first, second}
        ]
        good += [x for x in pairs if x.plan.fits and _GPU not in x.kinds]
    own = sorted((x for x in good if _GPU not in x.kinds), key=lambda x: (_MASKS in x.kinds, x.plan.hours))
    others = sorted((x for x in good if _GPU in x.kinds), key=lambda x: x.plan.dollars)
    return [*own[: limit - bool(others)], *others[:1]] if len(own) >= limit else [*own, *others][:limit]


def _plan(setting: Setting, tracer: Tracer) -> Plan:
    return make_plan(setting.recipe, setting.config, setting.gpu, setting.world, tracer)


def _changes(start: Setting, smaller: bool) -> Iterator[_Change]:
    """``smaller``: also fewer masks, and much smaller micro-batches."""
    yield from _of_recipe(start, smaller)
    yield from _of_config(start, smaller)
    for gpu in GPUS.values():
        if start.gpu.name in GPUS and gpu.memory > start.gpu.memory:
            yield _GPU, f"{gpu.name} in place of {start.gpu.name}", dataclasses.replace(start, gpu=gpu)


def _of_recipe(start: Setting, smaller: bool) -> Iterator[_Change]:
    recipe = start.recipe
    other = {"none": "torch", "torch": "none"}.get(recipe.model.checkpointing)
    if other:
        model = dataclasses.replace(recipe.model, checkpointing=other)
        changed = dataclasses.replace(start, recipe=dataclasses.replace(recipe, model=model))
        yield "checkpointing", f"--set model.checkpointing={other}", changed
    masks = recipe.data.max_masks // 2
    if smaller and recipe.task == "segment_images" and masks >= 8 and not recipe.curriculum.max_masks:
        data = dataclasses.replace(recipe.data, max_masks=masks)
        changed = dataclasses.replace(start, recipe=dataclasses.replace(recipe, data=data))
        yield _MASKS, f"--set data.max_masks={masks} (fewer objects a step)", changed


def _of_config(start: Setting, smaller: bool) -> Iterator[_Change]:
    config = start.config
    micro, accumulation, zero = config.micro_batch, config.accumulation, config.raw.get("zero_optimization", {})
    sizes = {micro // parts: parts * accumulation for parts in ((2, 4, 8) if smaller else (2,)) if micro % parts == 0}
    if accumulation % 2 == 0:
        sizes[2 * micro] = accumulation // 2
    for size, times in sizes.items():
        keys = {"train_micro_batch_size_per_gpu": size, "gradient_accumulation_steps": times}
        yield "micro batch", f"micro batch {size} × accumulation {times}", _with(start, keys)
    other = {2: 3, 3: 2}[config.zero_stage]
    yield "stage", f"ZeRO stage {other}", _with(start, {}, {"stage": other, "offload_param": {"device": "none"}})
    if config.offload_optimizer:
        yield "offload", "no offload_optimizer", _with(start, {}, {"offload_optimizer": {"device": "none"}})
    else:
        yield "offload", "offload_optimizer to cpu", _with(start, {}, {"offload_optimizer": {"device": "cpu"}})
    if zero.get("reduce_bucket_size", 5e8) > _SMALL_BUCKET:
        changed = _with(start, {}, {"reduce_bucket_size": _SMALL_BUCKET})
        yield "bucket", f"reduce_bucket_size {_SMALL_BUCKET:,}", changed
    if config.raw.get("communication_data_type") == "fp32" and config.precision != "fp32":
        changed = _with(start, {"communication_data_type": config.precision})
        yield "communication", f"communication_data_type {config.precision}", changed


def _with(start: Setting, keys: dict[str, Any], zero: dict[str, Any] | None = None) -> Setting:
    raw = copy.deepcopy(start.config.raw)
    raw.update(keys)
    raw.setdefault("zero_optimization", {}).update(zero or {})
    return dataclasses.replace(start, config=deepspeed.parse(raw, start.config.source))
