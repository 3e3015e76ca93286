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
    """Bytes that a rank holds from start to end. Rank 0's, which has no less than any other."""

    weights: int  # in the precision of training, whole or in part
    masters: int  # float32 weights
    moments: int  # AdamW's two, float32
    gradients: int  # this rank's share, summed over micro-batches
    buckets: int  # for communication, made once
    on_host: int  # of all these, what offloading moves to the host


@dataclass(frozen=True)
class Memory:
    """Of a GPU, at the worst moment of a step; bytes by what they are for."""

    parts: dict[str, int]
    host: int  # bytes a rank has in the host's memory by offloading

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def shards(trace: Trace, config: DeepSpeedConfig, world: int) -> Shards:
    """What is there between steps, for one of ``world`` ranks."""
    groups = [[trace.sizes[name] for name in group] for group in trace.groups]
    own, whole = sum(share(config, group, world) for group in groups), sum(trace.sizes.values())
    unit, on_host = trace.element_bytes, 0
    weights = unit * (whole if config.zero_stage == 0 else own * world)
    masters = 4 * own if config.zero_stage or unit < 4 else 0
    buckets = gradients = 0  # ZeRO-2 makes them in every backward
    if config.zero_stage == 3:
        weights = unit * (own + sum(trace.sizes[name] for name in persistent(trace, config)))
        gradients = gradient_bytes(trace, config) * own
        buckets = (4 if sums_in_float(config, "communication_data_type") else unit) * zero(config, "reduce_bucket_size")
    if config.offload_optimizer:
        on_host, masters, moments, gradients = masters + 8 * own + gradients, 0, 0, 0
    else:
        moments = 8 * own
    return Shards(weights + unit * trace.frozen + trace.buffers, masters, moments, gradients, buckets, on_host)


def memory(trace: Trace, config: DeepSpeedConfig, world: int) -> Memory:
    """The most that a rank, the first, holds at once in a step."""
    held = shards(trace, config, world)
    between = {
        "weights": held.weights,
        "float32 weights": held.masters,
        "AdamW's moments": held.moments,
        "gradients": held.gradients,
        "communication": held.buckets,
    }
    moments = _backward_of_stage_3 if config.zero_stage == 3 else _backward_of_stage_2
    worst = max(moments(trace, config, world), key=lambda moment: sum(moment.values()))
    parts = Counter(between) + Counter(worst)
    return Memory({name: size for name, size in parts.items() if size}, held.on_host)


def share(config: DeepSpeedConfig, sizes: list[int], world: int) -> int:
    """Elements of an optimizer's group that each rank looks after.

    ZeRO 1 and 2 lay the group end to end, round it up and split it; ZeRO-3 splits every parameter by itself.
    """
    if config.zero_stage == 0:
        return sum(sizes)
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


def sums_in_float(config: DeepSpeedConfig, key: str) -> bool:
    """Whether gradients are accumulated, or communicated, in float32; if the config is silent, as weights are."""
    named = config.raw.get("data_types", {}).get(key) or config.raw.get(key)
    return bool(named == "fp32" if named else config.precision == "fp32")


def zero(config: DeepSpeedConfig, key: str) -> int:
    return int(config.raw.get("zero_optimization", {}).get(key, _ZERO_DEFAULTS[key]))


def _backward_of_stage_2(trace: Trace, config: DeepSpeedConfig, world: int) -> Iterator[dict[str, int]]:
    """What is alive in each span, with the buckets and gradients that ZeRO 1 and 2 make on the way."""
    unit, limit = trace.element_bytes, zero(config, "reduce_bucket_size")
    to_float = unit < 4 and sums_in_float(config, "communication_data_type")
    staged = gradient_bytes(trace, config) if config.zero_stage == 1 else unit
    buffers = staged * limit * (1 + bool(config.raw.get("zero_optimization", {}).get("overlap_comm")))
    gradients = 0 if config.offload_optimizer else _own_gradients(trace, config, world)
    made, filled = {"communication": buffers, "gradients": gradients}, 0
    started = False
    for span in trace.spans:
        yield {**span.most, **(made if started else {})}
        size = trace.sizes.get(span.parameter, 0)
        ends = span.backward and not size
        started = started or span.backward
        if started and filled and (ends or filled + size > limit):
            # The full bucket's slices are laid end to end once more, and cast.
            copies = filled * (unit + 4 * to_float)
            yield {**span.last, **made, "communication": buffers + copies}
            filled = 0
        filled += size


def _own_gradients(trace: Trace, config: DeepSpeedConfig, world: int) -> int:
    """Bytes of the gradients that a rank keeps until the step."""
    sizes = [[trace.sizes[name] for name in group] for group in trace.groups]
    if config.zero_stage < 2:
        return gradient_bytes(trace, config) * sum(map(sum, sizes))
    if gradient_bytes(trace, config) > trace.element_bytes:
        return 4 * sum(share(config, group, world) for group in sizes)
    # Those of its parameters are kept whole, also where the next rank's share begins within one.
    touched = 0
    for group in sizes:
        starts = [0, *itertools.accumulate(group)]
        touched += sum(size for size, start in zip(group, starts, strict=False) if start < share(config, group, world))
    return trace.element_bytes * touched


def _backward_of_stage_3(trace: Trace, config: DeepSpeedConfig, world: int) -> Iterator[dict[str, int]]:
    """As for stage 2; the weights that are gathered are there from their first use to their gradient."""
    limit, filled = zero(config, "reduce_bucket_size"), 0
    to_release = {name: size for name, size in trace.sizes.items() if name not in persistent(trace, config)}
    kept = sum(size for name, size in to_release.items() if name in trace.kept)
    live = min(zero(config, "stage3_max_live_parameters"), zero(config, "stage3_max_reuse_distance"))
    waiting = sum(to_release.values()) - kept
    for span in trace.spans:
        gathered = trace.element_bytes * (kept + min(waiting, live))
        yield {**span.most, "gathered weights": gathered}
        size = trace.sizes.get(span.parameter, 0)
        if filled and (filled + size > limit or (span.backward and not size)):
            copies = (4 if sums_in_float(config, "communication_data_type") else trace.element_bytes) * filled
            yield {**span.last, "gathered weights": gathered, "communication": copies + copies // world}
            filled = 0
        filled += size
        if span.parameter in to_release and span.parameter not in trace.kept:
            waiting -= size
