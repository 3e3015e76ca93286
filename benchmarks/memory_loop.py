"""One rank of bench_memory.py: steps of full batches, their time, and the most memory that tensors held in one.

python benchmarks/memory_loop.py SETTINGS.json RESULT.json      (started by ``ranks.run``)
"""

from __future__ import annotations

import gc
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from sam_ds.config import deepspeed, recipe_file
from sam_ds.engine import distributed
from sam_ds.engine.engine import Engine
from sam_ds.training import tasks


def main(settings_path: str, result_path: str) -> None:
    settings = json.loads(Path(settings_path).read_text())
    torch.set_num_threads(1)
    distributed.init()
    Path(result_path).write_text(json.dumps(measure(settings["point"], settings["steps"])))
    distributed.shut_down()


def measure(point: dict[str, Any], steps: int) -> dict[str, float]:
    """Bytes and seconds of one point: a recipe and a config."""
    recipe, config = recipe_file.from_dict(point["recipe"]), deepspeed.parse(point["deepspeed"])
    kit = tasks.kit(recipe.task)
    engine = Engine(kit.build, recipe, config)
    batches = [kit.full_batch(recipe, config.micro_batch)] * config.accumulation
    first = 2 if config.zero_stage == 3 else 1  # the moments are made, and ZeRO-3 knows the order of the weights
    for step in range(first):
        engine.train_step(batches, step)
    before = _held()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        engine.train_step(batches, first)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else before + _most_more(recorded)
    del recorded
    seconds = []
    for step in range(first + 1, first + 1 + steps):
        start = time.perf_counter()
        result = engine.train_step(batches, step)
        float(result.logs["loss/total"])
        seconds.append(time.perf_counter() - start)
    engine.close()
    return {"bytes": peak, "seconds": statistics.median(seconds) if seconds else float("nan")}


def _held() -> int:
    """Bytes of all tensors that there are.

    Adding up allocations from the start would count too many: what gloo's threads free, the profiler does not see.
    """
    gc.collect()
    tensors = (x for x in gc.get_objects() if isinstance(x, torch.Tensor) and x.device.type != "meta")
    storages = [x.untyped_storage() for x in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _most_more(recorded: profile) -> int:
    """How many bytes more than at the beginning tensors in the host's memory held at most."""
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


if __name__ == "__main__":
    main(*sys.argv[1:])
