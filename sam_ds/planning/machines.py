"""GPUs and the nodes they come in: what a plan needs to know of them.

Peaks, memory and links are those of the makers' datasheets (SXM versions; dense bfloat16; links one way). How much of
a peak a training reaches is an assumption, the same for all of them, until it has been measured on one: then
``benchmarks/bench_memory.py --machine FILE`` writes what takes this table's place (``--gpu FILE``). Prices are round
figures of 2026's rental offers.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from sam_ds.config.errors import UserError, nearest

GIB = 2**30
_MAY_BE_ZERO = ("call", "reserve", "fragments", "latency", "price")


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: float  # bytes that a process can have, all in all
    matrix: float  # floating-point operations a second of matrix products, as they are reached
    attention: float  # the same in the attention kernels
    instructions: float  # float32 lanes' instructions a second, as they are reached
    bandwidth: float  # bytes a second of its memory, as they are reached
    call: float  # seconds for which the host is busy with one operation
    peak: float  # the datasheet's floating-point operations a second, in bfloat16
    float_factor: float = 1.0  # how many times longer products take in float32
    reserve: float = 0.0  # bytes that the driver and the communication take
    fragments: float = 0.0  # what the allocator loses, as a part of what comes and goes in a step
    per_node: int = 8
    link: float = 1e12  # bytes a second between the GPUs of a node, each way
    network: float = 1e12  # bytes a second of the network cards of one GPU, each way
    latency: float = 0.0  # seconds of a hop, of which a collective makes log2(ranks) at least
    price: float = 0.0  # dollars an hour
    device: str = "cuda"  # or "cpu", on which other ops are chosen
    source: str = "assumed"  # where the reached parts come from


def _datasheet(
    name: str, memory: float, tera: float, lanes: float, bandwidth: float, link: float, network: float, price: float
) -> Gpu:
    """With the parts of the peaks that large models' trainings commonly reach. Assumed, not measured here."""
    return Gpu(
        name,
        memory=memory * GIB,
        matrix=0.6 * tera * 1e12,
        attention=0.4 * tera * 1e12,
        instructions=0.7 * lanes * 1e12,
        bandwidth=0.75 * bandwidth * 1e12,
        call=8e-6,
        peak=tera * 1e12,
        float_factor=16.0,  # torch leaves TF32 off
        reserve=2.0 * GIB,
        fragments=0.1,
        link=0.75 * link * 1e9,
        network=0.85 * network * 1e9,
        latency=10e-6,
        price=price,
    )


GPUS = {
    gpu.name: gpu
    for gpu in (
        _datasheet("A100-40", 39.5, 312, 9.7, 1.555, 300, 25, 1.5),
        _datasheet("A100-80", 79.2, 312, 9.7, 2.039, 300, 25, 2.0),
        _datasheet("H100", 79.6, 989, 30.9, 3.35, 450, 50, 3.0),
        _datasheet("H200", 139.8, 989, 30.9, 4.8, 450, 50, 3.8),
    )
}


def find(name: str) -> Gpu:
    """A GPU by name, or as measured, from the JSON file of that name.

    Raises:
        UserError: there is no such GPU, or the file does not hold one.
    """
    if name in GPUS:
        return GPUS[name]
    if not name.endswith(".json"):
        raise UserError(f"--gpu {name}: {nearest(name, GPUS)}; or give the file of a measured one (.json)")
    try:
        values = json.loads(Path(name).read_text(encoding="utf-8"))
        gpu = Gpu(**values)
    except OSError as error:
        raise UserError(f"--gpu {name}: cannot read it ({error.strerror})") from None
    except (ValueError, TypeError):
        fields = ", ".join(field.name for field in dataclasses.fields(Gpu))
        raise UserError(f"--gpu {name}: not a measured GPU: an object with {fields}") from None
    _check(gpu, name)
    return gpu


def _check(gpu: Gpu, source: str) -> None:
    for field in dataclasses.fields(Gpu):
        value = getattr(gpu, field.name)
        if field.name in ("name", "source", "device"):
            good, must = isinstance(value, str), "a text"
        elif type(value) not in (int, float) or not math.isfinite(value):
            good, must = False, "a number"
        elif field.name == "per_node":
            good, must = type(value) is int and value >= 1, "a whole number from 1"
        elif field.name in _MAY_BE_ZERO:
            good, must = value >= 0, "at least 0"
        else:
            good, must = value > 0, "above 0"
        if not good:
            raise UserError(f"--gpu {source}: {field.name} must be {must}, not {value!r}")
    if gpu.device not in ("cuda", "cpu"):
        raise UserError(f"--gpu {source}: device must be cuda or cpu, not {gpu.device!r}")
