"""Masked autoencoding: where the encoders of SAM come from.

Sources: [paper] He et al., "Masked Autoencoders Are Scalable Vision Learners", 2021, appendix A.1 and table 8;
[code] its public training code; [document] the written plan a recipe follows; [here] decided by this project.
ImageNet-1K has 1,281,167 pictures to train on, SA-1B 11,185,362.
"""

from __future__ import annotations

from sam_ds.config.schema import (
    DataConfig,
    EvalConfig,
    MaeConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
    ScheduleConfig,
    TrainConfig,
    TransformConfig,
)


def mae_vit_l() -> Recipe:
    """MAE ViT-L/16 (329 M parameters with its decoder), as the paper trained it.

    deepspeed --hostfile hostfiles/a100x128.hostfile --module sam_ds train --recipe mae_vit_l
        --deepspeed_config ds_configs/zero2_a100x128_batch4096.json --data /data/imagenet

    Hardware: 128 A100 (80 GB), 32 pictures on each. Time and score: not yet run at scale; the paper reports 31 hours
    on 128 TPU-v3 cores, and 85.9 % on ImageNet after fine-tuning.

    Length    500,456 steps x 4,096 pictures = 2.05 G pictures = 1,600 epochs of ImageNet-1K           [paper]
    Model     224 pixels, patches of 16; decoder of 8 blocks, 512 wide, 16 heads                       [paper]
    Masks     75 % of the patches; what is painted is standardised patch by patch                      [paper]
    Optimizer AdamW, lr 1.5e-4 for 256 pictures (2.4e-3 at 4,096), betas .9/.95, weight decay .05      [paper]
              not on vectors [code], nor on the class and the mask token                               [here]
    Schedule  40 epochs (12,511 steps) of linear warm-up, then half a cosine to 0                      [paper]
              step by step                                                                             [code]
    Data      random resized crop of .2 to 1 of the area [code], aspect 3/4 to 4/3 [code], flip        [paper]
    Clipping  none, so none in the DeepSpeed config                                                    [code]
    """
    return _as_the_paper("mae_vit_l", "vit_l16")


def mae_vit_b() -> Recipe:
    """MAE ViT-B/16 (112 M parameters with its decoder), as the paper trained it.

    deepspeed --hostfile hostfiles/a100x128.hostfile --module sam_ds train --recipe mae_vit_b
        --deepspeed_config ds_configs/zero2_a100x128_batch4096.json --data /data/imagenet

    Hardware: 128 A100, 32 pictures on each. Time and score: not yet run at scale; the paper reports 83.6 % on
    ImageNet after fine-tuning. The rest as mae_vit_l.
    """
    return _as_the_paper("mae_vit_b", "vit_b16")


def mae_vit_h() -> Recipe:
    """MAE ViT-H/14 (657 M parameters with its decoder), as the paper trained it.

    deepspeed --hostfile hostfiles/a100x128.hostfile --module sam_ds train --recipe mae_vit_h
        --deepspeed_config ds_configs/zero2_a100x128_batch4096.json --data /data/imagenet

    Hardware: 128 A100, 32 pictures on each. Time and score: not yet run at scale; the paper reports 34.5 hours for 800
    epochs on 128 TPU-v3 cores, and 86.9 % on ImageNet after fine-tuning.
    Patches of 14 pixels, as in the release [code]. SAM ViT-H has 16: its first convolution is resampled when the
    weights are handed over; --set model.preset=vit_h16 trains with 16 from the start. The rest as mae_vit_l.
    """
    return _as_the_paper("mae_vit_h", "vit_h14")


def mae_meta_sam_large() -> Recipe:
    """MAE of Meta-SAM-Large's encoder (1.2 B parameters).

    deepspeed --hostfile hostfiles/a100x128.hostfile --module sam_ds train --recipe mae_meta_sam_large
        --deepspeed_config ds_configs/zero2_a100x128_batch4096.json --data /data/sa1b

    Hardware: 128 A100 (80 GB), 32 pictures on each. Time and score: not yet run at scale.

    The document asks for an MAE encoder and says no more of it, so:
    Model     36 blocks of width 1664 with 26 heads of 64, patches of 16; the paper's decoder          [here]
    Length    500,456 steps x 4,096 pictures, as the paper's: 183 epochs of SA-1B's pictures           [here]
    The rest as mae_vit_l.
    """
    return _as_the_paper("mae_meta_sam_large", "vit_meta_sam_large")


def mae_tiny() -> Recipe:
    """MAE of the recipe tiny's encoder, on two CPU cores.

    sam-ds train --recipe mae_tiny --data pictures

    Hardware: two CPU cores. All numbers are this project's.

    Model     as the SAM preset tiny: 4 blocks of width 128, patches of 8, here of 128 x 128 pixels; a decoder of 2
              blocks, 64 wide
    Data      crops of .04 to .5 of the area: what tiny sees in its own crops of 128 pixels of 512
    Optimizer lr 1e-3 for 8 pictures, as the local DeepSpeed configs have them; the paper's rule starts from 256
    Places    those of a grid of 16 x 16, which the hand-over stretches to SAM's of 64 x 64. With --set
              model.preset=vit_tiny_512 --set data.crop_size=128 they are learnt in SAM's own grid, the crops lying
              anywhere in it; what that is worth to SAM is not yet measured
    """
    return Recipe(
        name="mae_tiny",
        task="pretrain_mae",
        model=ModelConfig(preset="vit_tiny"),
        data=DataConfig(workers=1, transforms=TransformConfig(flip=0.5, area=(0.04, 0.5), aspect=(3 / 4, 4 / 3))),
        mae=MaeConfig(mask_ratio=0.75, normalize_pixels=True),
        optim=OptimConfig(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=100, final=0.0),
        train=TrainConfig(steps=4000, log_every=20, eval_every=0, save_every=1000),
        eval=EvalConfig(max_pictures=64),
    )


def _as_the_paper(name: str, preset: str) -> Recipe:
    return Recipe(
        name=name,
        task="pretrain_mae",
        model=ModelConfig(preset=preset),
        data=DataConfig(workers=8, transforms=TransformConfig(flip=0.5, area=(0.2, 1.0), aspect=(3 / 4, 4 / 3))),
        mae=MaeConfig(mask_ratio=0.75, normalize_pixels=True),
        optim=OptimConfig(lr=1.5e-4, lr_batch=256, betas=(0.9, 0.95), weight_decay=0.05),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=12_511, final=0.0),
        train=TrainConfig(steps=500_456, made_for_batch=4096, eval_every=10_000, save_every=1000),
        eval=EvalConfig(batch=32),
    )
