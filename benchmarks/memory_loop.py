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
from torch.profiler import ProfilerActivity, profile, record_function

from sam_ds.config import deepspeed, recipe_file
from sam_ds.engine import distributed
from sam_ds.engine.engine import Engine
from sam_ds.training import tasks

_STEP = "the measured step"


def main(settings_path: str, result_path: str) -> None:
    settings = json.loads(Path(settings_path).read_text())
    torch.set_num_threads(1)
    distributed.init()
    results = [measure(point, settings["steps"]) for point in settings["points"]]
    Path(result_path).write_text(json.dumps(results))
    distributed.shut_down()


def measure(point: dict[str, Any], steps: int) -> dict[str, float]:
    """Bytes and seconds of one point: a recipe and a config."""
    recipe, config = recipe_file.from_dict(point["recipe"]), deepspeed.parse(point["deepspeed"])
    kit = tasks.kit(recipe.task)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        engine = Engine(kit.build, recipe, config)
        batch = kit.full_batch(recipe, config.micro_batch)
        batches = [batch] * config.accumulation
        engine.train_step(batches, 0)  # makes the moments
        engine.train_step(batches, 1)  # ZeRO-3 now knows the order of the weights
        with record_function(_STEP):
            engine.train_step(batches, 2)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _peak(recorded)
    del recorded
    seconds = []
    for step in range(3, 3 + steps):
        start = time.perf_counter()
        result = engine.train_step(batches, step)
        float(result.logs["loss/total"])
        seconds.append(time.perf_counter() - start)
    engine.close()
    return {"bytes": peak, "seconds": statistics.median(seconds) if seconds else float("nan")}


def _peak(recorded: profile) -> int:
    """Most bytes that tensors in the host's memory held at once during the step."""
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    step = next(event for event in events if event.name() == _STEP)
    first, last = step.start_ns(), step.start_ns() + step.duration_ns()
    memory = [event for event in events if event.name() == "[memory]"]
    levels = itertools.accumulate(event.nbytes() for event in memory)
    return max(level for event, level in zip(memory, levels, strict=True) if first <= event.start_ns() <= last)


if __name__ == "__main__":
    main(*sys.argv[1:])
