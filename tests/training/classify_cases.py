"""What the ranks run for ``test_classify``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sam_ds.config.schema import ClassifyConfig, TransformConfig
from sam_ds.training import loop
from sam_ds.training.run import open_run
from tests.engine import toy
from tests.training import cases


def learn(folder: Path, data: str) -> Any:
    """Forty steps on a dozen pictures."""
    recipe = cases.classify(steps=40, eval_every=0, save_every=0)
    plain = ClassifyConfig(num_classes=2)
    recipe = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, preset="vit_tiny", drop_path=0.0),
        classify=plain,
        data=dataclasses.replace(recipe.data, transforms=TransformConfig(flip=0.5)),
        optim=dataclasses.replace(recipe.optim, ema_decay=0.9),
        schedule=dataclasses.replace(recipe.schedule, warmup_steps=5),
        eval=dataclasses.replace(recipe.eval, max_pictures=0),
    )
    config = dataclasses.replace(toy.config(2), micro_batch=6)
    run = open_run(recipe, config, data, data, folder / "run", "auto")
    loop.train(run)
    run.close()
    return run.folder.evaluations()
