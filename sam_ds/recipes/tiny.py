"""A SAM small enough to learn on two CPU cores in minutes."""

from __future__ import annotations

import dataclasses

from sam_ds.config.schema import (
    CurriculumConfig,
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

    Hardware: two CPU cores. Measured on drawn scenes: 4.7 minutes, mIoU 52.1 % after 1 click and 65.9 % after 8, where
    a disc at the click has 38.9 and 34.3 (benchmarks/results/learning.csv). All numbers are this project's.

    SAM's own recipe starts from an encoder pre-trained for thousands of GPU hours and sees millions of objects. From
    random weights, in minutes, it stays where it starts: predicting nothing is a strong first optimum. So, other
    than the SAM recipes:

    Model     the decoder's attention starts with prompts attending to their own place (position_prior): where a
              click points is given and not to be found by chance
    Loss      1 focal (alpha .8) + 1 dice, not 20 focal (alpha .25): with small objects the latter pushes every pixel
              to background before dice has a gradient to pull with; on the logits' grid, because a CPU must get
              through many objects; the predicted IoU of all masks is trained, since few objects are seen
    Crops     most steps see crops of a quarter of the input's side, which cost a sixteenth; then half, then the whole
    Rounds    two, later three, instead of eleven: more objects for the same time
    Schedule  cosine to the end; no layer decay, for there are no pre-trained weights to keep
    """
    return Recipe(
        name="tiny",
        model=ModelConfig(preset="tiny", position_prior=5.0),
        data=DataConfig(
            max_masks=8,
            workers=1,
            transforms=TransformConfig(
                flip=0.5, scale_jitter=(0.25, 1.25), brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05
            ),
        ),
        prompts=PromptConfig(correction_rounds=3, extra_rounds=0),
        loss=LossConfig(
            focal=1.0, dice=1.0, focal_alpha=0.8, iou_masks="all", resolution="logits", mean_over_rounds=True
        ),
        optim=OptimConfig(lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.05),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=50, final=0.02),
        train=TrainConfig(steps=500, log_every=10, eval_every=0, save_every=200),
        curriculum=CurriculumConfig(
            parts=(0.86, 0.125, 0.015),
            crop_sizes=(128, 256, 512),
            correction_rounds=(1, 2, 2),
        ),
        eval=EvalConfig(clicks=(1, 3, 5, 8), max_pictures=32, max_masks=32),
    )


def tiny_from_mae() -> Recipe:
    """The recipe tiny, from an encoder that mae_tiny trains first on the same pictures.

    sam-ds train --recipe tiny_from_mae --data pictures [--pretrain_data more_pictures]

    Hardware: two CPU cores. All numbers are this project's. Two phases, in one run folder: see mae_tiny and tiny.
    The encoder rests for the 50 steps in which the learning rate rises: what is new above it would shake it most then.
    """
    recipe = tiny()
    optim = dataclasses.replace(recipe.optim, frozen_encoder_steps=recipe.schedule.warmup_steps)
    return dataclasses.replace(recipe, name="tiny_from_mae", pretrain="mae_tiny", optim=optim)
