"""How long one optimizer step takes, from what it computes, moves and sends."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.planning.machines import Gpu
from sam_ds.planning.memory import persistent, share, sums_in_float, zero
from sam_ds.planning.operations import ATTENTION, LOSS, MATRIX
from sam_ds.planning.trace import Trace

# AdamW reads master, gradient and two moments, and writes all but the gradient back, and the weight.
_ADAMW_READS, _ADAMW_WRITES = 4 * 4, 3 * 4
_HOST_BANDWIDTH = 20e9  # bytes a second and GPU, of an AdamW on the host and of the way there and back; assumed


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step by what they go to; they add up, but for ``hidden``."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def step_time(trace: Trace, config: DeepSpeedConfig, gpu: Gpu, world: int) -> StepTime:
    """Of all micro-batches, the optimizer and what the ranks tell each other. Data is taken to be there in time."""
    work, micro = trace.work, config.accumulation
    device = {
        "matrix products": sum(work[kind].flops for kind in (MATRIX,) if kind in work) / gpu.matrix,
        "attention": sum(work[kind].flops for kind in (ATTENTION,) if kind in work) / gpu.attention,
        "mask loss": sum(work[kind].flops for kind in (LOSS,) if kind in work) / gpu.instructions,
        "other operations": sum(w.bytes for kind, w in work.items() if kind not in (MATRIX, ATTENTION, LOSS))
        / gpu.bandwidth,
    }
    parts = {name: micro * seconds for name, seconds in device.items()}
    calls = sum(w.calls for w in work.values()) * gpu.call
    parts["waiting for the host"] = micro * max(0.0, calls - sum(device.values()))
    parts["optimizer"] = _optimizer(trace, config, gpu, world)
    sent = communication(trace, config, world)
    compute = sum(parts.values())
    seconds = sum(_ring(size, gpu, world) for size in sent.values())
    seconds += messages(trace, config, world) * gpu.latency * math.log2(max(2, world))
    hidden = min(seconds, compute / 2) if config.raw.get("zero_optimization", {}).get("overlap_comm") else 0.0
    parts["communication"] = seconds - hidden
    return StepTime({name: value for name, value in parts.items() if value > 0})


def communication(trace: Trace, config: DeepSpeedConfig, world: int) -> dict[str, float]:
    """Bytes that go round all ranks in a step, an all-reduce counted twice, by what they are.

    ZeRO-2 of DeepSpeed all-reduces every micro-batch's gradients (with use_multi_rank_bucket_allreduce; a rank
    keeps its share) and gathers the weights after the step; ZeRO-3 reduce-scatters the gradients and gathers the
    weights when they are used, in forward, and again in backward where they could not stay.
    """
    if world == 1:
        return {}
    size, micro = sum(trace.sizes.values()), config.accumulation
    gradient = (4 if sums_in_float(config, "communication_data_type") else trace.element_bytes) * size * micro
    if config.zero_stage < 3:
        gathered = trace.element_bytes * size if config.zero_stage else 0
        return {"gradients": 2.0 * gradient, "weights": float(gathered)}
    split = size - sum(trace.sizes[name] for name in persistent(trace, config))
    live = min(zero(config, "stage3_max_live_parameters"), zero(config, "stage3_max_reuse_distance"))
    again = max(0, split - live)
    return {"gradients": float(gradient), "weights": float(trace.element_bytes * micro * (split + again))}


def messages(trace: Trace, config: DeepSpeedConfig, world: int) -> int:
    """How many collectives a step has, for each costs its latency, however little it carries."""
    if world == 1:
        return 0
    size, micro = sum(trace.sizes.values()), config.accumulation
    buckets = math.ceil(size / zero(config, "reduce_bucket_size")) * micro
    if config.zero_stage < 3:
        return buckets + 2 * len(trace.groups)  # a gather, and a look for what is not finite
    kept = len(persistent(trace, config))  # gathered one by one after the step
    ahead = zero(config, "stage3_prefetch_bucket_size") or size
    return buckets + kept + 2 * micro * math.ceil(size / ahead)


def _ring(size: float, gpu: Gpu, world: int) -> float:
    """Seconds in which ``size`` bytes go round: every link carries all of them but one rank's part.

    A ring over nodes uses all network cards of a node at once, for each of its GPUs has its own.
    """
    slowest = gpu.link if world <= gpu.per_node else min(gpu.link, gpu.network)
    return size * (world - 1) / world / slowest


def _optimizer(trace: Trace, config: DeepSpeedConfig, gpu: Gpu, world: int) -> float:
    own = sum(share(config, [trace.sizes[name] for name in group], world) for group in trace.groups)
    moved = own * (_ADAMW_READS + _ADAMW_WRITES + trace.element_bytes)
    return moved / (_HOST_BANDWIDTH if config.offload_optimizer else gpu.bandwidth)
