"""A machine's rates for ``sam-ds plan``, fitted to steps that were measured on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.planning.machines import Gpu
from sam_ds.planning.step_time import step_time
from sam_ds.planning.trace import Trace

# The rates that are fitted. Of each, a step has so many units, and takes them one after another.
_RATES = ("matrix", "attention", "bandwidth", "link")
_LARGE = 1e30  # a rate at which nothing takes time

Measured = tuple[Trace, DeepSpeedConfig, float]  # and the seconds of a step


def fit(points: Sequence[Measured], world: int) -> Gpu:
    """The rates with which the steps' times come out best, in the least squares of their ratios.

    No rate may be negative: where one would be, it is left out (non-negative least squares, by trying subsets).
    """
    columns = [[_seconds(_machine(**{rate: 1.0}), x, world) for x in points] for rate in _RATES]
    units = np.array(columns).T / np.array([seconds for *_, seconds in points])[:, None]  # [points, rates]
    best: tuple[float, np.ndarray] | None = None
    for subset in range(1, 2 ** len(_RATES)):
        chosen = [i for i in range(len(_RATES)) if subset >> i & 1]
        scale = units[:, chosen].max(0)
        times = np.linalg.lstsq(units[:, chosen] / scale, np.ones(len(points)), rcond=None)[0] / scale
        error = float(((units[:, chosen] @ times - 1) ** 2).sum())
        if (times >= 0).all() and (best is None or error < best[0]):
            best = error, np.array([dict(zip(chosen, times, strict=True)).get(i, 0.0) for i in range(len(_RATES))])
    assert best is not None, "one rate alone is always positive"
    rates = {name: 1 / seconds if seconds else _LARGE for name, seconds in zip(_RATES, best[1], strict=True)}
    return _machine(**rates)


def predicted_seconds(machine: Gpu, trace: Trace, config: DeepSpeedConfig, world: int) -> float:
    return step_time(trace, config, machine, world).total


def _seconds(machine: Gpu, point: Measured, world: int) -> float:
    return step_time(point[0], point[1], machine, world).total


def _machine(**rates: float) -> Gpu:
    everything = {"matrix": _LARGE, "attention": _LARGE, "instructions": _LARGE, "bandwidth": _LARGE, "link": _LARGE}
    return Gpu("cpu", memory=_LARGE, call=0.0, peak=_LARGE, source="measured", **(everything | rates))
