"""The messages that bench_communication times are those of a step: every gradient and every weight goes once around."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from sam_ds.cli.plan import make_tracer
from sam_ds.config import deepspeed
from sam_ds.planning.step_time import communication
from sam_ds.recipes import RECIPES
from tests.contracts.source import ROOT


@pytest.fixture(scope="module")
def said() -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_communication.py"), "--recipes", "tiny"]
    command += ["--configs", "zero2_a100x256", "zero3_a100x256", "--repeats", "1", "--no-save"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def megabytes(said: str, config: str) -> dict[str, float]:
    """By collective, those of all its messages in a step."""
    part = said[said.index(config) :].partition("a step: ")[0]
    found: dict[str, float] = {}
    for op, size, count in re.findall(r"^  (all-\w+|reduce-scatter) +([\d,]+) +(\d+) ", part, re.MULTILINE):
        found[op] = found.get(op, 0.0) + int(size.replace(",", "")) * int(count) / 1e6
    return found


def parameters() -> int:
    from sam_ds.tasks.segment_images import SegmentImages

    return sum(p.numel() for p in SegmentImages(RECIPES["tiny"]()).parameters() if p.requires_grad)


def test_zero2_reduces_every_gradient_and_gathers_every_weight(said: str) -> None:
    assert "2 ranks, gloo" in said
    found, millions = megabytes(said, "zero2_a100x256"), parameters() / 1e6
    assert found["all-reduce"] == pytest.approx(4 * millions, rel=0.01)  # communication_data_type is fp32
    assert found["all-gather"] == pytest.approx(2 * millions, rel=0.01)  # bf16
    assert "reduce-scatter" not in found  # whole buckets are all-reduced: use_multi_rank_bucket_allreduce


def test_zero3_scatters_every_gradient_and_fetches_every_weight_once(said: str) -> None:
    found, millions = megabytes(said, "zero3_a100x256"), parameters() / 1e6
    assert found["reduce-scatter"] == pytest.approx(4 * millions, rel=0.01)
    assert found["all-gather"] == pytest.approx(2 * millions, rel=0.01)  # what forward fetched stays for backward


@pytest.mark.parametrize("name", ["zero2_a100x256", "zero3_a100x256"])
def test_the_plan_counts_the_same_bytes(said: str, name: str) -> None:
    """An all-reduce goes round twice."""
    config = deepspeed.load(name)
    planned = communication(make_tracer(on_gpu=False)(RECIPES["tiny"](), 1, config.precision), config, 2)
    found = megabytes(said, name)
    gradients = 2 * found.get("all-reduce", 0.0) + found.get("reduce-scatter", 0.0)
    assert gradients == pytest.approx(planned["gradients"] / 1e6, rel=0.01)
    assert found["all-gather"] == pytest.approx(planned["weights"] / 1e6, rel=0.01)
