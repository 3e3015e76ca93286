"""What DeepSpeed gives a rank of worlds that are not there: torch's fake process group says yes to everything.

python -m tests.planning.fake_world RECIPE CONFIG WORLD:RANK…      prints a line of JSON for each, bytes by purpose

Values are garbage; sizes are DeepSpeed's own. Each in a process of its own, for DeepSpeed takes a world to be for ever.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Iterable
from typing import Any
from unittest import mock

import deepspeed
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from sam_ds import recipes
from sam_ds.config import deepspeed as configs
from sam_ds.engine import engine as engines
from sam_ds.training import tasks


def main(recipe_name: str, config_path: str, *places: str) -> None:
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")  # what is imported, all have
    for place in places:
        world, rank = map(int, place.split(":"))
        child = fork.Process(target=held, args=(recipe_name, config_path, world, rank))
        child.start()
        child.join()
        if child.exitcode:
            sys.exit(child.exitcode)


def held(recipe_name: str, config_path: str, world: int, rank: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    deepspeed.comm.init_distributed(dist_backend="fake", auto_mpi_discovery=False, verbose=False)
    recipe, config = recipes.get(recipe_name), configs.load(config_path)
    config = configs.parse({**config.raw, "train_batch_size": config.micro_batch * config.accumulation * world})
    with mock.patch.object(engines.weights, "set_masters"):  # it would ask other ranks for values
        engine = engines.Engine(tasks.kit(recipe.task).build, recipe, config)
    print(json.dumps(_stage_3(engine) if config.zero_stage == 3 else _stage_2(engine)), flush=True)


def _stage_2(engine: Any) -> dict[str, int]:
    zero = engine.ds.optimizer
    groups = range(len(zero.bit16_groups))
    return {
        "weights": _bytes(zero.bit16_groups_flat),
        "masters": _bytes(zero.single_partition_of_fp32_groups),
        "gradients": _bytes(zero._build_compact_grad_partition_buffer(group).flat_partition for group in groups),
        "buckets": 0,
    }


def _stage_3(engine: Any) -> dict[str, int]:
    zero, parameters = engine.ds.optimizer, list(engine.task.parameters())
    whole = sum(p.ds_numel * p.ds_tensor.element_size() for p in parameters if p.ds_persist)
    return {
        "weights": _bytes(p.ds_tensor for p in parameters) + whole,
        "masters": _bytes(zero.fp32_partitioned_groups_flat),
        "gradients": _bytes([zero.grad_partitions_flat_buffer]),
        "buckets": _bytes(bucket.buffer for bucket in zero.ipg_buckets.values()),
    }


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


if __name__ == "__main__":
    main(*sys.argv[1:])
