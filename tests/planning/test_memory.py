"""The plan's bytes against DeepSpeed's own, in worlds that no machine here could hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sam_ds import recipes
from sam_ds.config import deepspeed, overrides
from sam_ds.planning.memory import memory, shards
from sam_ds.planning.plan import Tracer

ROOT = Path(__file__).resolve().parents[2]


def of_deepspeed(config: Path, places: list[tuple[int, int]]) -> list[dict[str, int]]:
    """Bytes that DeepSpeed gives the ranks of (world, rank)."""
    command = [sys.executable, "-m", "tests.planning.fake_world", "tiny", str(config)]
    command += [f"{world}:{rank}" for world, rank in places]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize(("stage", "ranks"), [(2, (0, -1)), (3, (0,))])
def test_every_rank_holds_what_the_plan_says(
    stage: int, ranks: tuple[int, ...], tracer: Tracer, tmp_path: Path
) -> None:
    """ZeRO-3 compares its ranks with each other when it starts, so there only the first can be asked."""
    raw = json.loads((deepspeed.CONFIG_DIR / f"zero{stage}_a100x256.json").read_text())
    raw["zero_optimization"]["reduce_bucket_size"] = 1_000_000
    del raw["train_batch_size"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = deepspeed.load(tmp_path / "config.json")
    trace = tracer(recipes.get("tiny"), 1, "bf16")
    places = [(world, rank % world) for world in (128, 256) for rank in ranks]
    for (world, _), found in zip(places, of_deepspeed(tmp_path / "config.json", places), strict=True):
        planned = shards(trace, config, world)
        assert planned.weights - trace.buffers == found["weights"]
        assert (planned.masters, planned.moments) == (found["masters"], 2 * found["masters"])
        assert (planned.gradients, planned.buckets) == (found["gradients"], found["buckets"])


def test_accumulated_gradients_are_there_from_the_start(tracer: Tracer) -> None:
    trace = tracer(recipes.get("tiny"), 1, "bf16")
    for stage, more in ((2, True), (3, False)):  # ZeRO-3 keeps them from step to step
        raw = json.loads((deepspeed.CONFIG_DIR / f"zero{stage}_local.json").read_text()) | {"train_batch_size": 4}
        raw["train_micro_batch_size_per_gpu"] = 1
        raw["zero_optimization"]["reduce_bucket_size"] = 1000
        once, twice = (deepspeed.parse(raw | {"gradient_accumulation_steps": times}) for times in (1, 2))
        assert (memory(trace, twice, 1).total > memory(trace, once, 1).total) is more


def test_what_is_not_summed_in_float32_lies_in_a_buffer_of_its_micro_batch(tracer: Tracer) -> None:
    """With float32 weights, say: made whole with the first bucket, and anew in every micro-batch."""
    trace = tracer(recipes.get("tiny"), 1, "fp32")
    raw = json.loads((deepspeed.CONFIG_DIR / "zero2_local_fp32.json").read_text()) | {"train_batch_size": 8}
    raw["train_micro_batch_size_per_gpu"] = 1
    raw["zero_optimization"]["reduce_bucket_size"] = 1000
    once, twice, often = (deepspeed.parse(raw | {"gradient_accumulation_steps": times}) for times in (1, 2, 4))
    more = memory(trace, twice, 2).total - memory(trace, once, 2).total
    assert more == pytest.approx(shards(trace, once, 2).gradients, rel=0.01)
    assert memory(trace, often, 2) == memory(trace, twice, 2)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_mean_of_the_weights_lies_where_the_masters_do(stage: int, tracer: Tracer) -> None:
    plain, averaged = (
        tracer(overrides.apply(recipes.get("tiny"), settings), 1, "bf16") for settings in ([], ["optim.ema_decay=0.9"])
    )
    raw = json.loads((deepspeed.CONFIG_DIR / f"zero{stage}_local.json").read_text())
    for place, on_host in (({}, False), ({"offload_optimizer": {"device": "cpu"}}, True)):
        config = deepspeed.parse(raw | {"zero_optimization": raw["zero_optimization"] | place})
        without, beside = memory(plain, config, 2), memory(averaged, config, 2)
        more = shards(averaged, config, 2).masters
        assert (beside.total - without.total, beside.host - without.host) == ((0, more) if on_host else (more, 0))


def test_the_host_takes_what_is_offloaded(tracer: Tracer) -> None:
    trace = tracer(recipes.get("tiny"), 1, "bf16")
    raw = json.loads((deepspeed.CONFIG_DIR / "zero3_local.json").read_text())
    offloaded = raw["zero_optimization"] | {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    here, away = (deepspeed.parse(raw | {"zero_optimization": zero}) for zero in (raw["zero_optimization"], offloaded))
    on_gpu, beside = memory(trace, here, 2), memory(trace, away, 2)
    own = shards(trace, here, 2).masters // 4
    assert on_gpu.host == 0 and beside.host == (4 + 8 + 4 + 4 + 2) * own
    assert on_gpu.total - beside.total == (4 + 8 + 4 + 2) * own
