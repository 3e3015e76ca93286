"""The plan's bytes against DeepSpeed's own, in worlds that no machine here could hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sam_ds import recipes
from sam_ds.config import deepspeed
from sam_ds.planning.memory import shards
from sam_ds.planning.plan import Tracer

ROOT = Path(__file__).resolve().parents[2]


def of_deepspeed(config: Path, places: list[tuple[int, int]]) -> list[dict[str, int]]:
    """Elements that DeepSpeed gives the ranks of (world, rank)."""
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
        assert planned.weights - trace.buffers == 2 * found["weights"]
        assert planned.masters == 4 * found["masters"]
        assert planned.moments == 8 * found["masters"]
        assert planned.gradients == 4 * found.get("gradients", 0)
        assert planned.buckets == 4 * found.get("buckets", 0)
