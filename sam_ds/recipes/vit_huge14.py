"""Classification: ViT-Huge/14 pre-trained on ImageNet-21K, fine-tuned on ImageNet-1K, and a tiny one.

Sources: [document] the written plan a recipe follows; [vit] Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020,
appendix B.1; [mae] He et al., "Masked Autoencoders Are Scalable Vision Learners", 2021, table 9; [code] its public
training code; [here] decided by this project.
ImageNet-21K has 14,197,122 pictures of 21,841 classes, ImageNet-1K 1,281,167 of 1,000.
"""

from __future__ import annotations

from sam_ds.config.schema import (
    ClassifyConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
    ScheduleConfig,
    TrainConfig,
    TransformConfig,
)


def vit_huge14_in21k() -> Recipe:
    """ViT-Huge/14 (660 M parameters, 28 M of them in its head), supervised on ImageNet-21K.

    deepspeed --hostfile hostfiles/h100x64.hostfile --module sam_ds train --recipe vit_huge14_in21k
        --deepspeed_config ds_configs/zero3_h100x64_batch2048.json --data /data/imagenet21k

    Hardware: 64 H100 (80 GB), 32 pictures on each, or 128 with 16. Time and score: not yet run at scale; sam-ds plan
    says 18 and 12 hours by assumed rates, if 311 or 234 pictures a second are read for each GPU.

    Length    623,897 steps x 2,048 pictures [document] = 1.28 G pictures = 90 epochs                  [vit]
    Model     224 pixels, patches of 14                                                                [document]
              the mean of the patches' tokens (modeling/classifier.py); drop path .1                   [here]
    Optimizer AdamW                                                                                    [document]
              lr 1e-3 for 4,096 pictures, weight decay .03, as ViT-L/16 on ImageNet-21K                [vit]
              so 5e-4 at 2,048                                                                         [here]
    Schedule  10,000 steps of warm-up, then half a cosine to 0                                         [document]
    Data      random resized crop, flip, colour jitter                                                 [document]
              of .08 to 1 of the area, aspect 3/4 to 4/3; .4 brightness, contrast, saturation, hue .1  [here]
    Sharding  ZeRO-3, in place of the document's fully sharded data parallelism; bf16, clipping at 1   [document]
    """
    return Recipe(
        name="vit_huge14_in21k",
        task="classify_images",
        model=ModelConfig(preset="vit_h14", drop_path=0.1),
        data=DataConfig(
            workers=12,
            transforms=TransformConfig(
                flip=0.5,
                area=(0.08, 1.0),
                aspect=(3 / 4, 4 / 3),
                brightness=0.4,
                contrast=0.4,
                saturation=0.4,
                hue=0.1,
            ),
        ),
        classify=ClassifyConfig(num_classes=21_841),
        optim=OptimConfig(lr=1e-3, lr_batch=4096, weight_decay=0.03),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=10_000, final=0.0),
        train=TrainConfig(steps=623_897, made_for_batch=2048, eval_every=20_000, save_every=1000),
        eval=EvalConfig(batch=32),
    )


def vit_huge14_in1k_finetune() -> Recipe:
    """ViT-Huge/14, fine-tuned on ImageNet-1K from masked autoencoding or from ImageNet-21K.

    deepspeed --hostfile hostfiles/h100x64.hostfile --module sam_ds train --recipe vit_huge14_in1k_finetune
        --deepspeed_config ds_configs/zero3_h100x64_batch1024.json --data /data/imagenet
        --set model.init=runs/vit_huge14_in21k

    Hardware: 64 H100, 16 pictures on each. Time and score: not yet run at scale; sam-ds plan says 1.1 hours by assumed
    rates, the paper reports 86.9 % from MAE.
    Start: model.init takes a run folder, a checkpoint or a file of any plain ViT of this size; its head starts anew.

    Length    62,557 steps x 1,024 pictures = 50 epochs                                                [mae]
    Model     drop path .3                                                                             [mae]
    Optimizer AdamW, lr 1e-3 for 256 pictures (4e-3 at 1,024), layer decay .75, weight decay .05       [mae]
              what is evaluated is the mean of the weights, of decay .9999                             [here]
    Schedule  5 epochs (6,256 steps) of warm-up, then half a cosine [mae] to 1e-6                      [code]
    Targets   label smoothing .1, mixup .8, cutmix 1.0, either with equal chance                       [mae]
    Data      random resized crop of .08 to 1 of the area, aspect 3/4 to 4/3, flip                     [code]
              colour jitter of .4 in place of RandAugment                                              [here]
    Clipping  at 1 by the DeepSpeed config, as the document's pre-training; MAE's code has none        [here]
    """
    lr = 1e-3
    return Recipe(
        name="vit_huge14_in1k_finetune",
        task="classify_images",
        model=ModelConfig(preset="vit_h14", drop_path=0.3),
        data=DataConfig(
            workers=8,
            transforms=TransformConfig(
                flip=0.5, area=(0.08, 1.0), aspect=(3 / 4, 4 / 3), brightness=0.4, contrast=0.4, saturation=0.4
            ),
        ),
        classify=ClassifyConfig(num_classes=1000, label_smoothing=0.1, mixup=0.8, cutmix=1.0),
        optim=OptimConfig(lr=lr, lr_batch=256, weight_decay=0.05, layer_decay=0.75, ema_decay=0.9999),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=6256, final=1e-6 / (4 * lr)),
        train=TrainConfig(steps=62_557, made_for_batch=1024, eval_every=2500, save_every=1000),
        eval=EvalConfig(batch=32),
    )


def vit_tiny_classify() -> Recipe:
    """A tiny ViT that tells two classes of pictures apart, on two CPU cores.

    sam-ds train --recipe vit_tiny_classify --data folder_with_a_folder_for_each_class

    Hardware: two CPU cores. All numbers are this project's.

    Model     that of mae_tiny: 4 blocks of width 128, patches of 8, here of 128 x 128 pixels
    Classes   two; --set classify.num_classes=N for others
    """
    return Recipe(
        name="vit_tiny_classify",
        task="classify_images",
        model=ModelConfig(preset="vit_tiny"),
        data=DataConfig(workers=1, transforms=TransformConfig(flip=0.5, area=(0.2, 1.0), aspect=(3 / 4, 4 / 3))),
        classify=ClassifyConfig(num_classes=2, label_smoothing=0.1),
        optim=OptimConfig(lr=5e-4, weight_decay=0.05, ema_decay=0.98),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=50, final=0.0),
        train=TrainConfig(steps=400, log_every=10, eval_every=0, save_every=200),
        eval=EvalConfig(batch=8),
    )
