"""What one rank holds at once: weights, optimizer, DeepSpeed's buffers, activations.

The numbers of DeepSpeed's side follow its ``runtime/zero/stage_1_and_2.py`` and ``stage3.py``, version 0.19: how
it pads and splits parameters, which buffers it makes, and what it copies when a bucket of gradients is full.
``tests/planning`` holds the per-rank bytes against DeepSpeed itself, in worlds of up to 256 ranks.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.planning.trace import Trace

_ALIGNMENT = 2  # elements to which a rank's share of a group is rounded up, with NCCL in mind
_ZERO_DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_model_persistence_threshold": 2**63 - 1,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
}


@dataclass(frozen=True)
class Shards:
    """Bytes that a rank, the first, has of each kind; no other has more."""

    weights: int  # in the precision of training, whole or in part
    masters: int  # float32 weights
    moments: int  # AdamW's two, float32
    means: int  # of the weights over the steps, float32
    gradients: int  # this rank's share, summed over micro-batches
    buckets: int  # for communication, made once


@dataclass(frozen=True)
class Memory:
    """Of a GPU, at the worst moment of a step; bytes by what they are for."""

    parts: dict[str, int]
    steady: int  # of all parts, what is there from step to step
    host: int  # bytes a rank has in the host's memory by offloading

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def shards(trace: Trace, config: DeepSpeedConfig, world: int) -> Shards:
    """What one of ``world`` ranks has, wherever it lies."""
    groups = [[trace.sizes[name] for name in group] for group in trace.groups]
    own, unit = sum(share(config, group, world) for group in groups), trace.element_bytes
    if config.zero_stage == 3:
        whole = sum(trace.sizes[name] for name in persistent(trace, config))
        weights = unit * (own + whole - (-trace.frozen // world))
        gradients = gradient_bytes(trace, config) * own
        buckets = sent_bytes(trace, config) * zero(config, "reduce_bucket_size")
    else:
        weights = unit * (own * world + trace.frozen)
        gradients, buckets = sum(_gradients_of_stage_2(trace, config, world)), 0
    return Shards(weights + trace.buffers, 4 * own, 8 * own, 4 * own * trace.averaged, gradients, buckets)


def memory(trace: Trace, config: DeepSpeedConfig, world: int) -> Memory:
    """The most that a rank, the first, holds at once in a step."""
    held, host, offloaded = shards(trace, config, world), 0, config.offload_optimizer
    parts = {"weights": held.weights, "communication": held.buckets}
    if config.zero_stage == 3 and not offloaded:
        parts["gradients"] = held.gradients
    if offloaded:
        # Beside them lie the gradients that the optimizer reads, and ZeRO-2's weights on their way to the GPU.
        more = held.gradients if config.zero_stage == 3 else trace.element_bytes * held.masters // 4
        host += held.masters + held.moments + held.means + held.masters + more
    else:
        parts |= {"float32 weights": held.masters, "AdamW's moments": held.moments}
        parts |= {"mean of the weights": held.means}
    if offloads_weights(config):
        away = trace.element_bytes * (held.masters // 4)
        parts["weights"] -= away
        host += away
    moments = _backward_of_stage_3 if config.zero_stage == 3 else _backward_of_stage_2
    worst = max(moments(trace, config, world), key=lambda moment: sum(moment.values()))
    together = Counter(parts) + Counter(worst)
    return Memory({name: size for name, size in together.items() if size}, sum(parts.values()), host)


def share(config: DeepSpeedConfig, sizes: list[int], world: int) -> int:
    """Elements of an optimizer's group that each rank looks after.

    ZeRO-2 lays the group end to end, rounds it up and splits it; ZeRO-3 splits every parameter by itself.
    """
    if config.zero_stage == 3:
        return sum(-(-size // world) for size in sizes)
    return -(-sum(sizes) // (_ALIGNMENT * world)) * _ALIGNMENT


def persistent(trace: Trace, config: DeepSpeedConfig) -> list[str]:
    """Parameters so small that ZeRO-3 keeps them whole on every rank: first come, first kept."""
    most, names = zero(config, "stage3_model_persistence_threshold"), []
    for name, size in trace.sizes.items():
        if size <= zero(config, "stage3_param_persistence_threshold") and size <= most:
            names.append(name)
            most -= size
    return names


def gradient_bytes(trace: Trace, config: DeepSpeedConfig) -> int:
    """Of an element of the gradient that is summed over micro-batches."""
    return 4 if sums_in_float(config, "grad_accum_dtype") else trace.element_bytes


def sent_bytes(trace: Trace, config: DeepSpeedConfig) -> int:
    """Of an element of the gradient when ranks add theirs up."""
    return 4 if sums_in_float(config, "communication_data_type") else trace.element_bytes


def offloads_weights(config: DeepSpeedConfig) -> bool:
    return config.raw.get("zero_optimization", {}).get("offload_param", {}).get("device", "none") != "none"


def overlaps(config: DeepSpeedConfig) -> bool:
    """Whether communication runs beside the backward; DeepSpeed's default differs by stage."""
    return bool(config.raw.get("zero_optimization", {}).get("overlap_comm", config.zero_stage == 3))


def sums_in_float(config: DeepSpeedConfig, key: str) -> bool:
    """Whether gradients are accumulated, or communicated, in float32; if the config is silent, as weights are."""
    named = config.raw.get("data_types", {}).get(key) or config.raw.get(key)
    return bool(named == "fp32" if named else config.precision == "fp32")


def zero(config: DeepSpeedConfig, key: str) -> int:
    return int(config.raw.get("zero_optimization", {}).get(key, _ZERO_DEFAULTS[key]))


def _backward_of_stage_2(trace: Trace, config: DeepSpeedConfig, world: int) -> Iterator[dict[str, int]]:
    """What is alive in each span, with the buckets and gradients that ZeRO-2 makes on the way."""
    unit, limit = trace.element_bytes, zero(config, "reduce_bucket_size")
    casts = 4 if sent_bytes(trace, config) > unit else 0
    buffers = unit * limit * (2 if overlaps(config) else 1)
    if config.offload_optimizer:
        buffers += unit * max(trace.sizes.values())  # through which gradients go to the host
    by_group, in_shares = _gradients_of_stage_2(trace, config, world), _sums_in_shares(trace, config)
    before = sum(by_group) if config.accumulation > 1 else 0  # of earlier micro-batches

    def gradients() -> int:
        now = sum(by_group[index] for index in made)
        return max(before, now) if in_shares else before + now

    group_of = {name: index for index, names in enumerate(trace.groups) for name in names}
    made: set[int] = set()
    bucket: list[str] = []
    started = False
    for span in trace.spans:
        yield {**span.most, "gradients": gradients(), "communication": buffers if started else 0}
        size = trace.sizes.get(span.parameter, 0)
        started = started or span.backward
        filled = sum(trace.sizes[name] for name in bucket)
        if bucket and (filled + size > limit or (span.backward and not size)):
            made |= {group_of[name] for name in bucket} if in_shares else set(group_of.values())
            # The full bucket's slices are laid end to end once more, and cast.
            yield {**span.last, "gradients": gradients(), "communication": buffers + filled * (unit + casts)}
            bucket = []
        if size:
            bucket.append(span.parameter)
    if not in_shares:  # the optimizer's step lays each group's end to end, and casts them
        largest = max(share(config, [trace.sizes[name] for name in group], world) for group in trace.groups)
        yield {"gradients": sum(by_group) + (4 + unit if unit < 4 else 4) * largest}


def _sums_in_shares(trace: Trace, config: DeepSpeedConfig) -> bool:
    """Whether ZeRO-2 adds gradients into a float32 buffer of its share of each group, made when they are first there.

    Else it makes one buffer for all of a micro-batch's, with the first bucket.
    """
    return gradient_bytes(trace, config) > trace.element_bytes


def _gradients_of_stage_2(trace: Trace, config: DeepSpeedConfig, world: int) -> list[int]:
    """Bytes of the gradients that a rank keeps until the step, by the optimizer's groups."""
    sizes = [[trace.sizes[name] for name in group] for group in trace.groups]
    if _sums_in_shares(trace, config):
        return [4 * share(config, group, world) for group in sizes]
    # Those of its parameters are kept whole, also where the next rank's share begins within one.
    touched = []
    for group in sizes:
        starts = itertools.accumulate(group[:-1], initial=0)
        own = [size for size, start in zip(group, starts, strict=True) if start < share(config, group, world)]
        touched.append(trace.element_bytes * sum(own))
    return touched


def _backward_of_stage_3(trace: Trace, config: DeepSpeedConfig, world: int) -> Iterator[dict[str, int]]:
    """As for stage 2; the weights that are gathered are there from their first use to their gradient."""
    limit, filled = zero(config, "reduce_bucket_size"), 0
    to_release = {name: size for name, size in trace.sizes.items() if name not in persistent(trace, config)}
    kept = sum(size for name, size in to_release.items() if name in trace.kept)
    live = min(zero(config, "stage3_max_live_parameters"), zero(config, "stage3_max_reuse_distance"))
    waiting = sum(to_release.values()) + trace.frozen - kept
    for span in trace.spans:
        gathered = trace.element_bytes * (kept + min(waiting, live))
        yield {**span.most, "gathered weights": gathered}
        size = trace.sizes.get(span.parameter, 0)
        if filled and (filled + size > limit or (span.backward and not size)):
            copies = sent_bytes(trace, config) * filled
            yield {**span.last, "gathered weights": gathered, "communication": copies + copies // world}
            filled = 0
        filled += size
        if span.parameter in to_release and span.parameter not in trace.kept:
            waiting -= size
