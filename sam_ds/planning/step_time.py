"""How long one optimizer step takes, from what it computes, moves and sends."""

from __future__ import annotations

import math

from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.planning.machines import Gpu
from sam_ds.planning.memory import overlaps, persistent, sent_bytes, share, zero
from sam_ds.planning.operations import ATTENTION, LOSS, MATRIX, MEMORY
from sam_ds.planning.trace import Trace, Work

# AdamW reads master, gradient and two moments, and writes all but the gradient back, and the weight.
_ADAMW_READS, _ADAMW_WRITES = 4 * 4, 3 * 4
_MEAN = 3 * 4  # of the weights: it and the master are read, it is written
# Assumed: bytes a second and GPU of an AdamW on the host with the way there and back, and the part of the computing
# beside which communication can run (the backward, less its last bucket).
_HOST_BANDWIDTH, _HIDDEN = 20e9, 0.5


def step_time(trace: Trace, config: DeepSpeedConfig, gpu: Gpu, world: int) -> dict[str, float]:
    """Seconds of one optimizer step by what they go to, which add up. Data is taken to be there in time."""
    work, slower = trace.work, gpu.float_factor if trace.element_bytes == 4 else 1.0
    device = {
        "matrix products": _sum(work, MATRIX).flops / gpu.matrix * slower,
        "attention": _sum(work, ATTENTION).flops / gpu.attention * slower,
        "mask loss": _sum(work, LOSS).flops / gpu.instructions,
        "other operations": _sum(work, MEMORY).bytes / gpu.bandwidth,
    }
    parts = {name: config.accumulation * seconds for name, seconds in device.items()}
    calls = sum(kind.calls for kind in work.values()) * gpu.call
    meanwhile = 0.0 if gpu.device == "cpu" else sum(device.values())  # a GPU computes while the next is called
    parts["waiting for the host"] = config.accumulation * max(0.0, calls - meanwhile)
    parts["optimizer"] = _optimizer(trace, config, gpu, world)
    sent = communication(trace, config, world)
    if gpu.device == "cpu" and config.zero_stage == 3:
        # gloo reduce-scatters by an all-reduce and copies: 1.5 times as long at least (communication.csv)
        sent = {**sent, "gradients": 3 * sent.get("gradients", 0.0)}
    seconds = _ring(sum(sent.values()), gpu, world)
    seconds += messages(trace, config, world) * gpu.latency * math.log2(max(2, world))
    beside = _HIDDEN * sum(parts.values()) if overlaps(config) else 0.0
    parts["communication"] = max(0.0, seconds - beside)
    return {name: value for name, value in parts.items() if value > 0}


def assumptions(config: DeepSpeedConfig, world: int) -> list[str]:
    """What ``step_time`` takes for given, other than the GPU's rates."""
    taken = []
    if world > 1 and overlaps(config):
        taken.append(f"communication runs beside {_HIDDEN:.0%} of the computing")
    if config.offload_optimizer:
        taken.append(f"AdamW on the host moves {_HOST_BANDWIDTH / 1e9:g} GB/s a GPU")
    return taken


def _sum(work: dict[str, Work], kind: str) -> Work:
    return work.get(kind, Work())


def communication(trace: Trace, config: DeepSpeedConfig, world: int) -> dict[str, float]:
    """Bytes that go round all ranks in a step, an all-reduce counted twice, by what they are.

    ZeRO-2 of DeepSpeed all-reduces every micro-batch's gradients (with use_multi_rank_bucket_allreduce; a rank
    keeps its share) and gathers the weights after the step; ZeRO-3 reduce-scatters the gradients and gathers the
    weights when they are used, in forward, and again in backward where they could not stay.
    """
    if world == 1:
        return {}
    size, micro = sum(trace.sizes.values()), config.accumulation
    gradient = sent_bytes(trace, config) * size * micro
    if config.zero_stage == 2:
        return {"gradients": 2.0 * gradient, "weights": float(trace.element_bytes * size)}
    kept = sum(trace.sizes[name] for name in persistent(trace, config))  # gathered once, after the step
    split = size + trace.frozen - kept
    live = min(zero(config, "stage3_max_live_parameters"), zero(config, "stage3_max_reuse_distance"))
    again = max(0, split - live)
    return {"gradients": float(gradient), "weights": float(trace.element_bytes * (kept + micro * (split + again)))}


def messages(trace: Trace, config: DeepSpeedConfig, world: int) -> int:
    """How many collectives a step has, for each costs its latency, however little it carries."""
    if world == 1:
        return 0
    size, micro = sum(trace.sizes.values()), config.accumulation
    buckets = math.ceil(size / zero(config, "reduce_bucket_size")) * micro
    if config.zero_stage == 2:
        return buckets + 2 * len(trace.groups)  # a gather, and a look for what is not finite
    kept = len(persistent(trace, config))  # gathered one by one after the step
    ahead = zero(config, "stage3_prefetch_bucket_size")
    gathers = math.ceil(size / ahead) if ahead else len(trace.sizes) - kept
    return buckets + kept + micro * gathers


def _ring(size: float, gpu: Gpu, world: int) -> float:
    """Seconds in which ``size`` bytes go round: every link carries all of them but one rank's part.

    A ring over nodes uses the network cards of all a node's GPUs at once.
    """
    slowest = gpu.link if world <= gpu.per_node else min(gpu.link, gpu.network * gpu.per_node)
    return size * (world - 1) / world / slowest


def _optimizer(trace: Trace, config: DeepSpeedConfig, gpu: Gpu, world: int) -> float:
    own = sum(share(config, [trace.sizes[name] for name in group], world) for group in trace.groups)
    moved = own * (_ADAMW_READS + _ADAMW_WRITES + trace.element_bytes + _MEAN * trace.averaged)
    return moved / (_HOST_BANDWIDTH if config.offload_optimizer else gpu.bandwidth)
