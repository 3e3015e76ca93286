"""The plan's bytes against DeepSpeed's own, in worlds that no machine here could hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sam_ds import recipes
from sam_ds.cli.plan import make_tracer
from sam_ds.config import deepspeed
from sam_ds.planning.memory import shards

ROOT = Path(__file__).resolve().parents[2]


def of_deepspeed(config: Path, world: int, rank: int) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.planning.fake_world", "tiny", str(config), str(world), str(rank)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("world", [128, 256])
@pytest.mark.parametrize("name", ["zero2_a100x256.json", "zero3_a100x256.json"])
def test_every_rank_holds_what_the_plan_says(name: str, world: int, tmp_path: Path) -> None:
    raw = json.loads((deepspeed.CONFIG_DIR / name).read_text()) | {"train_batch_size": world}
    raw["zero_optimization"]["reduce_bucket_size"] = 1_000_000
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = deepspeed.load(tmp_path / "config.json")
    trace = make_tracer(False)(recipes.get("tiny"), 1, "bf16")
    planned = shards(trace, config, world)
    for rank in (0, world - 1) if config.zero_stage == 2 else (0,):
        found = of_deepspeed(tmp_path / "config.json", world, rank)
        assert planned.weights - trace.buffers == 2 * found["weights"]
        assert planned.masters == 4 * found["masters"]
        assert planned.moments == 8 * found["masters"]
        assert planned.gradients == 4 * found.get("gradients", 0)
        assert planned.buckets == 4 * found.get("buckets", 0)
