"""A machine's rates for ``sam-ds plan``, fitted to steps that were measured on it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
import torch
from gpus import called

from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.planning.machines import GPUS, Gpu
from sam_ds.planning.step_time import step_time
from sam_ds.planning.trace import Trace

# The rates that are fitted, and the seconds of a call. Of each, a step has so many units, one after another.
_RATES = ("matrix", "attention", "bandwidth", "link")
_FITTED = (*_RATES, "call")
_LARGE = 1e30  # a rate at which nothing takes time: what the points do not tell apart

Measured = tuple[Trace, DeepSpeedConfig, float]  # and the seconds of a step


def fit(points: Sequence[Measured], world: int, like: Gpu) -> Gpu:
    """``like`` with the rates and the call with which the steps' times come out best, in least squares of their ratios.

    None may be negative: where one would be, it is left out (non-negative least squares, by trying subsets).
    """
    bare = dataclasses.replace(
        like, **dict.fromkeys((*_RATES, "instructions", "network"), _LARGE), call=0.0, latency=0.0
    )
    machines = [dataclasses.replace(bare, **{name: 1.0}) for name in _FITTED]
    # Of what no point has any, nothing is left, not even what the others take at their large rates.
    rest = [predicted_seconds(bare, x, world) for x in points]
    columns = [[predicted_seconds(own, x, world) for x in points] for own in machines]
    units = (np.array(columns) - rest).T / np.array([point[2] for point in points])[:, None]  # [points, fitted]
    seen = units.any(0)
    best: tuple[float, dict[str, float]] | None = None
    for subset in range(1, 2 ** len(_FITTED)):
        chosen = [i for i in range(len(_FITTED)) if subset >> i & 1]
        if not seen[chosen].all():
            continue
        scale = units[:, chosen].max(0)
        times = np.linalg.lstsq(units[:, chosen] / scale, np.ones(len(points)), rcond=None)[0] / scale
        error = float(((units[:, chosen] @ times - 1) ** 2).sum())
        if (times > 0).all() and (best is None or error < best[0]):
            units_of = ((_FITTED[i], float(seconds)) for i, seconds in zip(chosen, times, strict=True))
            best = error, {name: 1 / seconds if name in _RATES else seconds for name, seconds in units_of}
    assert best is not None, "one rate alone is always positive"
    beyond = {name: getattr(like, name) for name in ("instructions", "network", "latency")}  # of what was not measured
    return dataclasses.replace(bare, **(beyond | best[1]), source="measured")


def predicted_seconds(machine: Gpu, point: Measured, world: int) -> float:
    return sum(step_time(point[0], point[1], machine, world).values())


def this_machine() -> Gpu:
    """What is known of it before its rates are."""
    if torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(), float(torch.cuda.get_device_properties(0).total_memory)
        known = called(name)
        alike = [gpu for gpu in GPUS.values() if known and gpu.name.startswith(known.name)]
        if alike:
            return min(alike, key=lambda gpu: abs(gpu.memory - memory))
        device = "cuda"
    else:
        name, memory, device = "cpu", float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")), "cpu"
    rates = dict.fromkeys(("matrix", "attention", "instructions", "bandwidth", "peak"), _LARGE)
    return Gpu(name, memory=memory, call=0.0, device=device, per_node=os.cpu_count() or 1, **rates)
