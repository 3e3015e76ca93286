"""One rank of ours, for bench_peer_training.py: the engine, the training loader and the task as a training uses them.

python benchmarks/engine_loop.py SETTINGS.json RESULT.json      (started by ``ranks.run``)
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import torch
from ranks import Meter

from sam_ds.config import deepspeed, recipe_file
from sam_ds.data.index import open_index
from sam_ds.data.loader import TrainLoader
from sam_ds.engine import distributed
from sam_ds.engine.engine import Engine
from sam_ds.modeling.presets import PRESETS, SamConfig
from sam_ds.ops.choice import VARIABLE
from sam_ds.tasks.segment_images import SegmentImages
from sam_ds.training.splits import own_share


def main(settings_path: str, result_path: str) -> None:
    settings = json.loads(Path(settings_path).read_text())
    os.environ[VARIABLE] = settings["ops"]
    torch.set_num_threads(1)
    distributed.init()
    recipe, config = recipe_file.from_dict(settings["recipe"]), deepspeed.parse(settings["deepspeed"])
    sizes = {**settings["model"], "global_blocks": tuple(settings["model"]["global_blocks"])}
    PRESETS[recipe.model.preset] = SamConfig(**sizes)
    image_size = PRESETS[recipe.model.preset].image_size
    engine = Engine(SegmentImages, recipe, config)
    index = open_index(settings["data"])
    loader = TrainLoader(index, recipe, image_size, own_share(config), None)
    parameters = sum(p.numel() for p in engine.task.parameters())
    stream = loader.steps(0)
    distributed.barrier()
    meter = Meter(settings["warmup"])
    for step in range(settings["warmup"] + settings["steps"]):
        batches = next(stream)
        result = engine.train_step(batches, step)
        loss = float(result.logs["loss/total"])
        assert math.isfinite(loss), f"the loss of step {step} is {loss}"
        assert not result.skipped, f"step {step} was skipped"
        meter.lap(sum(batch.picture.numel() for batch in batches), loss)
    meter.write(result_path, parameters=parameters, held_mb=0.0)
    engine.close()
    distributed.shut_down()


if __name__ == "__main__":
    main(*sys.argv[1:])
