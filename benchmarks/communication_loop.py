"""One rank of bench_communication.py: which messages a step of the engine sends, and how long each takes by itself.

The messages are not computed but seen: a real step of the recipe under the DeepSpeed config runs while every
collective that reaches torch.distributed is written down. Then the engine goes, and each size is timed alone.

python benchmarks/communication_loop.py SETTINGS.json RESULT.json      (started by ``ranks.run``)
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from bench_train_step import make_batch, make_recipe
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sam_ds.config import deepspeed
from sam_ds.engine import distributed
from sam_ds.engine.engine import Engine
from sam_ds.recipes import RECIPES
from sam_ds.tasks.segment_images import SegmentImages

Message = tuple[str, int]  # the collective, and the bytes of its whole tensor: gathered, or to be reduced
# As torch names them inside, with the argument that holds the whole tensor.
_SEEN = {
    "allreduce_": ("all-reduce", 0),
    "_allgather_base_": ("all-gather", 0),
    "_reduce_scatter_base_": ("reduce-scatter", 1),
}
# What carries Python objects and waits, not gradients and weights.
_OTHERS = {"broadcast_", "barrier", "allgather_", "gather_", "scatter_", "monitored_barrier_"}


def main(settings_path: str, result_path: str) -> None:
    settings = json.loads(Path(settings_path).read_text())
    torch.set_num_threads(1)
    distributed.init()
    messages = messages_of_a_step(settings)
    collectives, device = make_collectives(), distributed.device()
    timed = {message: _milliseconds(collectives[message[0]], message[1], settings, device) for message in messages}
    found = [
        {"op": op, "bytes": size, "count": messages[op, size], "ms": timed[op, size]} for op, size in sorted(messages)
    ]
    Path(result_path).write_text(json.dumps({"backend": dist.get_backend(), "messages": found}))
    distributed.shut_down()


def messages_of_a_step(settings: dict[str, Any]) -> Counter[Message]:
    """How often a step sends each message. ZeRO-3 learns in two others what it can fetch early."""
    recipe = make_recipe(RECIPES[settings["recipe"]](), masks=settings["masks"])
    # Prompts and rounds change no message, and recomputation in backward none but those of ZeRO-3's fetches.
    recipe = dataclasses.replace(recipe, prompts=dataclasses.replace(recipe.prompts, correction_rounds=1))
    engine = Engine(SegmentImages, recipe, deepspeed.parse(settings["deepspeed"]))
    batch = make_batch(settings["crop"], settings["masks"])
    batches = [batch] * engine.config.accumulation
    before = 2 if engine.config.zero_stage == 3 else 0
    for step in range(before):
        engine.train_step(batches, step)
    with Seen() as seen:
        engine.train_step(batches, before)
    engine.close()
    return seen.messages


class Seen(TorchDispatchMode):
    """Counts the collectives that go through torch while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: Counter[Message] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            assert name in _SEEN or name in _OTHERS, f"a step sends {name}, which is not timed here"
            if name in _SEEN:
                op, place = _SEEN[name]
                self.messages[op, _nbytes(args[place])] += 1
        return func(*args, **(kwargs or {}))


def _nbytes(tensors: Tensor | list[Tensor]) -> int:
    return sum(x.nbytes for x in ([tensors] if isinstance(tensors, Tensor) else tensors))


def make_collectives() -> dict[str, Callable[[Tensor], object]]:
    """By name, on a whole tensor whose size divides by the ranks."""
    rank, world = distributed.rank(), distributed.world_size()
    return {
        "all-reduce": dist.all_reduce,
        "all-gather": lambda whole: dist.all_gather_into_tensor(whole, whole.chunk(world)[rank]),
        "reduce-scatter": lambda whole: dist.reduce_scatter_tensor(torch.empty_like(whole.chunk(world)[rank]), whole),
    }


def _milliseconds(
    collective: Callable[[Tensor], object], size: int, settings: dict[str, Any], device: torch.device
) -> list[float]:
    """Of every repetition but the first, on this rank. Bytes are bytes: all are sent as fp32."""
    world = distributed.world_size()
    whole = torch.zeros(max(world, -(-size // 4 // world) * world), device=device)
    taken = []
    for _ in range(settings["repeats"] + 1):
        distributed.barrier()
        began = time.perf_counter()
        collective(whole)
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(1e3 * (time.perf_counter() - began))
    return taken[1:]


if __name__ == "__main__":
    main(*sys.argv[1:])
