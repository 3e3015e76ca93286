"""What the ranks run of the fine-tunes: pictures of which some have nothing to find."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sam_ds.config.schema import DetectConfig, Recipe, TransformConfig
from sam_ds.engine import distributed
from sam_ds.engine.engine import Engine
from sam_ds.recipes import downstream
from sam_ds.training import loop, tasks
from sam_ds.training.run import open_run
from tests.engine import cases as engine_cases
from tests.engine import toy
from tests.training import cases


def small(recipe: Recipe, checkpointing: str, **train: Any) -> Recipe:
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, preset="test", checkpointing=checkpointing, drop_path=0.1),
        data=dataclasses.replace(recipe.data, workers=0, transforms=TransformConfig(flip=0.5, scale_jitter=(0.5, 2.0))),
        train=dataclasses.replace(recipe.train, **train),
        eval=dataclasses.replace(recipe.eval, batch=1, pictures=1),
        tracking=dataclasses.replace(recipe.tracking, mlflow=False),
    )


def boxes(checkpointing: str = "none", **train: Any) -> Recipe:
    detect = DetectConfig(num_classes=1, num_queries=20, decoder_layers=2)
    return dataclasses.replace(small(downstream.vitdet_tiny(), checkpointing, **train), detect=detect)


def classes(checkpointing: str = "none", **train: Any) -> Recipe:
    return small(downstream.segment_tiny(), checkpointing, **train)


RECIPES: dict[str, Callable[..., Recipe]] = {"detect_objects": boxes, "segment_classes": classes}


def one_graph(folder: Path, task: str, stage: int) -> Any:
    """Steps in which the ranks have other numbers of boxes, one of them none."""
    recipe, kit = RECIPES[task](), tasks.kit(task)
    engine = Engine(kit.build, recipe, toy.config(stage, accumulation=1))
    world, rank = distributed.world_size(), distributed.rank()
    counts, losses = [], []
    for step in range(3):
        batch = kit.example(recipe, step * world + rank)
        counts.append(float(engine.task.prepare(batch, step).count))
        losses.append(distributed.mean_logs(engine.train_step([batch], step).logs)["loss/total"])
    weights = engine_cases.own_digest(engine)
    engine.close()
    return {"counts": counts, "losses": losses, "weights": weights}


def parity(folder: Path, task: str, stage: int, checkpointing: str) -> Any:
    cases.SMALL[task] = RECIPES[task]  # of this process, which is a rank
    return cases.parity(folder, task, stage, checkpointing)


def resume(folder: Path, task: str, data: str, stage: int) -> Any:
    cases.SMALL[task], cases.CHANGED_EVAL[task] = RECIPES[task], {"max_pictures": 1}
    return cases.resume(folder, task, data, stage)


def learn(folder: Path, task: str, data: str, steps: int) -> Any:
    """What a training on a few pictures measures of the same ones."""
    recipe = dataclasses.replace(RECIPES[task](steps=steps, eval_every=0, save_every=0), schedule=downstream_schedule())
    recipe = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, drop_path=0.0),
        data=dataclasses.replace(recipe.data, transforms=TransformConfig()),
    )
    run = open_run(recipe, dataclasses.replace(toy.config(2), micro_batch=2), data, None, folder / "run", "auto")
    loop.train(run)
    run.close()
    return run.folder.evaluations()


def downstream_schedule() -> Any:
    return dataclasses.replace(downstream.vitdet_tiny().schedule, warmup_steps=5)
