"""The rates that a machine's steps were made with are found again, and none of what no step had any of."""

from __future__ import annotations

import dataclasses

import pytest

from sam_ds.config import deepspeed
from sam_ds.planning.machines import Gpu
from sam_ds.planning.operations import ATTENTION, MATRIX, MEMORY
from sam_ds.planning.step_time import step_time
from sam_ds.planning.trace import Trace, Work

# Six steps: floating-point operations of matrix products, bytes, calls, and parameters of the model.
STEPS = [
    (4e10, 3e9, 4000, 10**6),
    (9e10, 4e9, 4500, 10**6),
    (2e10, 9e9, 6000, 10**6),
    (1e11, 2e9, 3000, 9 * 10**7),
    (3e11, 5e9, 3500, 9 * 10**7),
    (2e11, 8e9, 9000, 9 * 10**7),
]
CONFIG = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2, "overlap_comm": False}}
REAL = Gpu(
    "cpu", memory=1e10, matrix=5e10, attention=2e10, instructions=1e30, bandwidth=1e10, call=2e-4, peak=1e30,
    link=7e8, per_node=2, device="cpu",
)  # fmt: skip


@pytest.mark.parametrize("attention", [0.0, 0.5])
@pytest.mark.usefixtures("on_path")
def test_the_rates_of_what_the_steps_have_are_found_again(attention: float) -> None:
    from fit_machine import fit

    config = deepspeed.parse(CONFIG)
    traces = [step(*numbers, attention * index) for index, numbers in enumerate(STEPS)]
    points = [(trace, config, sum(step_time(trace, config, REAL, 2).values())) for trace in traces]
    found = fit(points, 2, dataclasses.replace(REAL, matrix=1.0, attention=1.0, bandwidth=1.0, link=1.0, call=1.0))
    there = ["matrix", "bandwidth", "link", "call"] + ["attention"] * (attention > 0)
    for name in there:
        assert getattr(found, name) == pytest.approx(getattr(REAL, name), rel=1e-3), name
    if not attention:
        assert found.attention > 1e20, "of which no step has any, and which would take the place of the others"


def step(flops: float, size: float, calls: int, parameters: int, attention: float) -> Trace:
    work = {MATRIX: Work(flops=flops, calls=calls), MEMORY: Work(bytes=size)}
    if attention:
        work[ATTENTION] = Work(flops=attention * 1e10)
    return Trace(
        spans=(), work=work, forward_flops=flops / 3, sizes={"weight": parameters}, groups=(("weight",),),
        kept=frozenset(), frozen=0, buffers=0, element_bytes=4, averaged=False,
    )  # fmt: skip
