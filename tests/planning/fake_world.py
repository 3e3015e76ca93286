"""What DeepSpeed gives a rank of worlds that are not there: torch's fake process group says yes to everything.

python -m tests.planning.fake_world RECIPE CONFIG WORLD:RANK…      prints a line of JSON for each, elements by purpose

Values are garbage; sizes are DeepSpeed's own. Each in a process of its own, for DeepSpeed takes a world to be for ever.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
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
        child = fork.Process(target=elements, args=(recipe_name, config_path, world, rank))
        child.start()
        child.join()
        if child.exitcode:
            sys.exit(child.exitcode)


def elements(recipe_name: str, config_path: str, world: int, rank: int) -> None:
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
    return {
        "weights": sum(flat.numel() for flat in zero.bit16_groups_flat),
        "masters": sum(flat.numel() for flat in zero.single_partition_of_fp32_groups),
    }


def _stage_3(engine: Any) -> dict[str, int]:
    zero, parameters = engine.ds.optimizer, list(engine.task.parameters())
    return {
        "weights": sum(p.ds_tensor.numel() for p in parameters) + sum(p.ds_numel for p in parameters if p.ds_persist),
        "masters": sum(flat.numel() for flat in zero.fp32_partitioned_groups_flat),
        "gradients": zero.grad_partitions_flat_buffer.numel(),
        "buckets": sum(bucket.buffer.numel() for bucket in zero.ipg_buckets.values()),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
