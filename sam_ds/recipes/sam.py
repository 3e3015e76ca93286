"""SAM on SA-1B: the paper's three sizes, and a variant with a curriculum.

Sources: [paper] Kirillov et al., "Segment Anything", 2023, appendix A; [sam2] the public training code of SAM 2,
for what the paper leaves open; [document] the written plan a recipe follows; [here] decided by this project.
SA-1B has 11,185,362 pictures.
"""

from __future__ import annotations

from sam_ds.config.schema import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    PromptConfig,
    Recipe,
    ScheduleConfig,
    TrainConfig,
    TransformConfig,
)


def sam_vit_h() -> Recipe:
    """SAM ViT-H (641 M parameters), as the paper trained it.

    deepspeed --hostfile hostfiles/a100x256.hostfile --module sam_ds train --recipe sam_vit_h
        --deepspeed_config ds_configs/zero2_a100x256.json --data /data/sa1b

    Hardware: 256 A100 (80 GB), one picture on each. Time and score: not yet run at scale.
    Start: the paper starts from an MAE encoder: --set model.init=FILE takes that of its release, or a run folder of
    mae_vit_h; empty is random.

    Length    90,000 steps x 256 pictures = 23.0 M pictures = 2.06 epochs                              [paper]
    Optimizer AdamW, lr 8e-4, betas .9/.999, weight decay .1, layer decay .8                           [paper]
    Schedule  250 steps of linear warm-up; lr / 10 after 60,000 and 86,666 steps                       [paper]
    Model     drop path .4                                                                             [paper]
    Data      no augmentation; up to 64 masks a picture, none over 90 % of it                          [paper]
    Prompts   point or box with equal chance, box noise 10 % of the side and at most 20 px;
              then 8 points from the error region and 2 rounds without a new one: 11 rounds            [paper]
    Loss      20 focal (alpha .25, gamma 2) + 1 dice + 1 MSE of the predicted IoU                      [paper]
              at the input's resolution, summed over rounds, per object over all ranks                 [sam2]
    Memory    encoder blocks and decoder rounds are recomputed in backward                             [here]
    """
    return Recipe(
        name="sam_vit_h",
        model=ModelConfig(preset="vit_h", drop_path=0.4, checkpointing="torch"),
        data=DataConfig(workers=8),
        optim=OptimConfig(lr=8e-4, layer_decay=0.8),
        schedule=ScheduleConfig(kind="step", warmup_steps=250, milestones=(60_000, 86_666)),
        train=TrainConfig(steps=90_000, made_for_batch=256, eval_every=5000, save_every=1000),
    )


def sam_vit_l() -> Recipe:
    """SAM ViT-L (312 M parameters), as the paper trained it.

    deepspeed --hostfile hostfiles/a100x128.hostfile --module sam_ds train --recipe sam_vit_l
        --deepspeed_config ds_configs/zero2_a100x128.json --data /data/sa1b

    Hardware: 128 A100, one picture on each. Time and score: not yet run at scale.

    As sam_vit_h, but for:
    Length    180,000 steps x 128 pictures = 23.0 M pictures = 2.06 epochs                             [paper]
    Optimizer lr 4e-4, layer decay .8                                                                  [paper]
    Schedule  lr / 10 at the same parts of the way as ViT-H: 120,000 and 173,333                       [here]
    """
    return Recipe(
        name="sam_vit_l",
        model=ModelConfig(preset="vit_l", drop_path=0.4, checkpointing="torch"),
        data=DataConfig(workers=8),
        optim=OptimConfig(lr=4e-4, layer_decay=0.8),
        schedule=ScheduleConfig(kind="step", warmup_steps=250, milestones=(120_000, 173_333)),
        train=TrainConfig(steps=180_000, made_for_batch=128, eval_every=10_000, save_every=1000),
    )


def sam_vit_b() -> Recipe:
    """SAM ViT-B (94 M parameters), as the paper trained it.

    deepspeed --hostfile hostfiles/a100x128.hostfile --module sam_ds train --recipe sam_vit_b
        --deepspeed_config ds_configs/zero2_a100x128.json --data /data/sa1b

    Hardware: 128 A100, one picture on each. Time and score: not yet run at scale.

    As sam_vit_l, but for:
    Model     drop path .6                                                                             [paper]
    Optimizer lr 8e-4, layer decay .6                                                                  [paper]
    """
    return Recipe(
        name="sam_vit_b",
        model=ModelConfig(preset="vit_b", drop_path=0.6, checkpointing="torch"),
        data=DataConfig(workers=8),
        optim=OptimConfig(lr=8e-4, layer_decay=0.6),
        schedule=ScheduleConfig(kind="step", warmup_steps=250, milestones=(120_000, 173_333)),
        train=TrainConfig(steps=180_000, made_for_batch=128, eval_every=10_000, save_every=1000),
    )


def sam_vit_h_curriculum() -> Recipe:
    """SAM ViT-H with a frozen start, mixed prompts and augmentation.

    deepspeed --hostfile hostfiles/a100x256.hostfile --module sam_ds train --recipe sam_vit_h_curriculum
        --deepspeed_config ds_configs/zero2_a100x256_batch1024.json --data /data/sa1b
        --set model.init=sam_vit_h.safetensors

    Hardware: 256 A100 (80 GB), 256 pictures at once, 4 times a step. Time and score: not yet run at scale.
    Start: with the encoder frozen at first, it makes sense only from trained weights (model.init).

    Length    22,500 steps x 1,024 pictures = 23.0 M pictures, as many as sam_vit_h                    [here]
    Frozen    the encoder rests for 1,250 steps, 1/18 of the way                                       [here]
              (the document's 5 epochs would be 54,600 steps, more than the whole training)
    Schedule  250 steps of warm-up to 8e-4, then half a cosine to 0                                    [document]
    Prompts   50 % points (1 to 5 of them: .4 .3 .15 .1 .05), 30 % box, 15 % mask, 5 % none            [document]
              then the paper's 10 further rounds                                                       [paper]
    Data      crop .8 to 1.2, flip, colour jitter                                                      [document]
              with .4 brightness, contrast, saturation and .1 hue                                      [here]
    Memory    activation checkpointing                                                                 [document]
    The rest as sam_vit_h.
    """
    return Recipe(
        name="sam_vit_h_curriculum",
        model=ModelConfig(preset="vit_h", drop_path=0.4, checkpointing="torch"),
        data=DataConfig(
            workers=8,
            transforms=TransformConfig(
                flip=0.5, crop=(0.8, 1.2), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
            ),
        ),
        prompts=PromptConfig(point=0.5, box=0.3, mask=0.15, none=0.05, num_points=(0.4, 0.3, 0.15, 0.1, 0.05)),
        optim=OptimConfig(lr=8e-4, layer_decay=0.8, frozen_encoder_steps=1250),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=250, final=0.0),
        train=TrainConfig(steps=22_500, made_for_batch=1024, eval_every=1250, save_every=250),
    )
