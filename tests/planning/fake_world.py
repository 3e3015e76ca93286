"""What DeepSpeed gives one rank of a world that is not there: torch's fake process group says yes to everything.

python -m tests.planning.fake_world RECIPE CONFIG WORLD RANK      prints JSON, elements by what they are for

Values are garbage; sizes are DeepSpeed's own. Made in a process of its own, for the group cannot be undone.
"""

from __future__ import annotations

import json
import os
import sys
from unittest import mock

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore


def main(recipe_name: str, config_name: str, world: int, rank: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    import deepspeed

    from sam_ds import recipes
    from sam_ds.config import deepspeed as configs
    from sam_ds.engine import engine as engines
    from sam_ds.training import tasks

    deepspeed.comm.init_distributed(dist_backend="fake", auto_mpi_discovery=False, verbose=False)
    recipe, config = recipes.get(recipe_name), configs.load(config_name)
    unchecked = mock.patch("deepspeed.runtime.zero.partition_parameters.assert_ints_same_as_other_ranks")
    later = mock.patch("deepspeed.runtime.zero.parameter_offload.assert_ints_same_as_other_ranks", create=True)
    with unchecked, later, mock.patch.object(engines.weights, "set_masters"):
        engine = engines.Engine(tasks.kit(recipe.task).build, recipe, config)
    print(json.dumps(_stage_3(engine) if config.zero_stage == 3 else _stage_2(engine)))


def _stage_2(engine: object) -> dict[str, int]:
    zero = engine.ds.optimizer  # type: ignore[attr-defined]
    return {
        "weights": sum(flat.numel() for flat in zero.bit16_groups_flat),
        "masters": sum(flat.numel() for flat in zero.single_partition_of_fp32_groups),
    }


def _stage_3(engine: object) -> dict[str, int]:
    zero = engine.ds.optimizer  # type: ignore[attr-defined]
    parameters = list(engine.task.parameters())  # type: ignore[attr-defined]
    return {
        "weights": sum(p.ds_tensor.numel() for p in parameters) + sum(p.ds_numel for p in parameters if p.ds_persist),
        "masters": sum(flat.numel() for flat in zero.fp32_partitioned_groups_flat),
        "gradients": zero.grad_partitions_flat_buffer.numel(),
        "buckets": sum(bucket.buffer.numel() for bucket in zero.ipg_buckets.values()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
