"""Meta-SAM-Large: a SAM of 1.2 billion parameters on 128 GPUs.

Sources: [document] the written plan this recipe follows; [paper] Kirillov et al., "Segment Anything", 2023,
appendix A, where the plan says nothing; [here] decided by this project.
"""

from __future__ import annotations

from sam_ds.config.schema import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
    ScheduleConfig,
    TrainConfig,
    TransformConfig,
)


def meta_sam_large() -> Recipe:
    """SAM with 1.2 B parameters and strong augmentation, from an encoder that is pre-trained first.

    deepspeed --hostfile hostfiles/a100x128.hostfile --module sam_ds train --recipe meta_sam_large
        --deepspeed_config ds_configs/zero2_a100x128_batch1024.json
        --pretrain_deepspeed_config ds_configs/zero2_a100x128_batch4096.json --data /data/sa1b

    Hardware: 128 A100 (80 GB), one picture on each, 8 times a step. Time and score: not yet run at scale.

    Phases    1. mae_meta_sam_large, on the same pictures, in the run folder's pretrain/               [document]
              2. the encoder rests for 5,000 steps, 1/20 of the way: what is new above it settles      [here]
              3. all is trained                                                                        [document]
              With model.init the first is left out; with --set pretrain= too, and it starts at random
    Model     36 blocks of width 1664 with 26 heads of 64 (the document gives the size only)           [here]
              drop path .4, as ViT-L and ViT-H                                                         [paper]
    Length    100,000 steps x 1,024 pictures = 102 M pictures = 9.2 epochs                             [here]
              the document's six weeks would allow 36 s a step, 4.5 s a picture on a GPU
    Optimizer AdamW                                                                                    [document]
              lr 4e-4, layer decay .8, weight decay .1, as ViT-L                                       [paper]
    Schedule  10,000 steps of warm-up, then half a cosine to 1e-6                                      [document]
    Data      scaling, crop, colour jitter, aggressive geometric augmentation                          [document]
              resize factor .1 to 2                                                                    [paper]
              crop .5 to 1, rotation 30, shear 10 degrees, scale .8 to 1.25, colour .4 .4 .4 .1        [here]
    Prompts, loss, memory: as sam_vit_h.
    """
    lr = 4e-4
    return Recipe(
        name="meta_sam_large",
        pretrain="mae_meta_sam_large",
        model=ModelConfig(preset="meta_sam_large", drop_path=0.4, checkpointing="torch"),
        data=DataConfig(
            workers=8,
            transforms=TransformConfig(
                flip=0.5,
                scale_jitter=(0.1, 2.0),
                crop=(0.5, 1.0),
                rotate=30.0,
                shear=10.0,
                affine_scale=(0.8, 1.25),
                brightness=0.4,
                contrast=0.4,
                saturation=0.4,
                hue=0.1,
            ),
        ),
        optim=OptimConfig(lr=lr, layer_decay=0.8, frozen_encoder_steps=5000),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=10_000, final=1e-6 / lr),
        train=TrainConfig(steps=100_000, made_for_batch=1024, eval_every=2500, save_every=250),
    )
