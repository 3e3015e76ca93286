"""Plans of phases that come one after the other."""

from __future__ import annotations

import pytest

from sam_ds import recipes
from sam_ds.cli.plan import spread
from sam_ds.config import deepspeed
from sam_ds.planning import machines
from sam_ds.planning.plan import Tracer, make_plan
from sam_ds.planning.report import together_rows, together_text


def test_phases_add_up(gpu_tracer: Tracer) -> None:
    gpu, config = machines.GPUS["A100-80"], deepspeed.load("zero2_local.json")
    phases = [
        [make_plan(recipes.get(name), spread(config, world), gpu, world, gpu_tracer) for world in (1, 2)]
        for name in ("mae_tiny", "tiny")
    ]
    rows = together_rows(phases)
    assert [row["gpus"] for row in rows] == [1, 2]
    for world, row in enumerate(rows):
        plans = [plans[world] for plans in phases]
        assert row["fits"] and row["gpu_hours"] == round(sum(plan.gpu_hours for plan in plans))
        assert row["days"] == pytest.approx(sum(plan.hours for plan in plans) / 24, abs=0.005)
    lines = together_text(phases).splitlines()
    assert [line.partition(" together: ")[0] for line in lines] == [
        "mae_tiny and tiny on 1 GPUs",
        "mae_tiny and tiny on 2 GPUs",
    ]
