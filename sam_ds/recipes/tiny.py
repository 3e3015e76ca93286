"""A SAM small enough to learn on two CPU cores in minutes."""

from __future__ import annotations

from sam_ds.config.schema import (
    DataConfig,
    EvalConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PromptConfig,
    Recipe,
    ScheduleConfig,
    TrainConfig,
    TransformConfig,
)


def tiny() -> Recipe:
    """A tiny SAM, trained from random weights: what `make train` runs.

    make train

    Hardware: two CPU cores.

    What differs from the SAM recipes, and why: the loss is taken on the logits' grid and there are four rounds
    instead of eleven, because a CPU must get through many objects in minutes; no layer decay, because there are
    no pre-trained weights to keep.
    """
    return Recipe(
        name="tiny",
        model=ModelConfig(preset="tiny"),
        data=DataConfig(max_masks=16, workers=1, transforms=TransformConfig(flip=0.5)),
        prompts=PromptConfig(correction_rounds=3, extra_rounds=0),
        loss=LossConfig(resolution="logits"),
        optim=OptimConfig(lr=8e-4),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=50, final=0.01),
        train=TrainConfig(steps=600, log_every=10, eval_every=0, save_every=200),
        eval=EvalConfig(clicks=(1, 3, 5, 8), max_pictures=32, max_masks=16),
    )
