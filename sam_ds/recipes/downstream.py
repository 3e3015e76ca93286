"""What pre-trained encoders are fine-tuned on: boxes of COCO, and the classes of ADE20K's pixels.

Sources: [vitdet] Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", 2022, as its public
configs have it (projects/ViTDet in detectron2); [rtdetr] Zhao et al., "DETRs Beat YOLOs on Real-time Object
Detection", 2023, whose decoder, matcher and losses are taken; [detrex] its DINO on ViTDet's pyramid; [mae] He et al.,
"Masked Autoencoders Are Scalable Vision Learners", 2021; [mmseg] mmsegmentation's config of MAE on ADE20K; [here]
decided by this project. COCO has 118,287 pictures to train on, ADE20K 20,210.
"""

from __future__ import annotations

from sam_ds.config.schema import (
    ClassesConfig,
    DataConfig,
    DetectConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
    ScheduleConfig,
    TrainConfig,
    TransformConfig,
)


def vitdet_b_coco() -> Recipe:
    """Detection on COCO with ViT-B: ViTDet's encoder, pyramid and schedule, with RT-DETR's decoder for a head.

    deepspeed --hostfile HOSTS --module sam_ds train --recipe vitdet_b_coco --data /data/coco
        --deepspeed_config ds_configs/zero2_a100x64.json --set model.init=mae_pretrain_vit_base.pth

    Hardware: 64 A100, one picture on each. Time and score: not yet run at scale. The public ViTDet, with Mask R-CNN's
    head, which is trained on masks too, has 51.6 box AP [vitdet].
    Data: COCO as it ships: annotations/instances_train2017.json, train2017/, and the same of val2017.
    Start: MAE of ImageNet-1K by model.init [vitdet]; a run folder of mae_vit_b, or any SAM of this size, do too.

    Length    184,375 steps x 64 pictures = 11.8 M pictures = 100 epochs                               [vitdet]
    Optimizer AdamW, lr 1e-4, betas .9/.999, weight decay .1, layer decay .7                           [vitdet]
    Schedule  250 steps of linear warm-up; lr / 10 after 163,889 and 177,546 steps                     [vitdet]
    Model     drop path .1 [vitdet]; pyramid with strides of 8, 16 and 32                              [detrex]
              decoder of 6 layers, 256 wide, 300 queries; matcher's and losses' weights                [rtdetr]
              no denoising queries, so that a rank without boxes trains the same weights               [here]
    Data      large-scale jitter of .1 to 2, a crop of 1,024 pixels, flip                              [vitdet]
    Clipping  .1, in the DeepSpeed config                                                              [rtdetr]
    """
    return Recipe(
        name="vitdet_b_coco",
        task="detect_objects",
        model=ModelConfig(preset="vit_b", drop_path=0.1),
        data=_large_scale_jitter(),
        optim=OptimConfig(lr=1e-4, layer_decay=0.7),
        schedule=ScheduleConfig(kind="step", warmup_steps=250, milestones=(163_889, 177_546)),
        train=TrainConfig(steps=184_375, made_for_batch=64, log_every=50, eval_every=5000, save_every=1000),
        eval=EvalConfig(batch=8),
    )


def vitdet_h_coco() -> Recipe:
    """Detection on COCO with ViT-H. The public ViTDet, with Mask R-CNN's head, has 56.7 box AP [vitdet].

    deepspeed --hostfile HOSTS --module sam_ds train --recipe vitdet_h_coco --data /data/coco
        --deepspeed_config ds_configs/zero2_a100x64.json --set model.init=mae_pretrain_vit_huge.pth

    Hardware: 64 A100, one picture on each. Time and score: not yet run at scale. As vitdet_b_coco, but for:

    Length    138,281 steps = 75 epochs; lr / 10 after 122,916 and 133,159                             [vitdet]
    Model     drop path .5, layer decay .9                                                             [vitdet]
    Memory    encoder blocks are recomputed in backward                                                [here]
    """
    return Recipe(
        name="vitdet_h_coco",
        task="detect_objects",
        model=ModelConfig(preset="vit_h", drop_path=0.5, checkpointing="torch"),
        data=_large_scale_jitter(),
        optim=OptimConfig(lr=1e-4, layer_decay=0.9),
        schedule=ScheduleConfig(kind="step", warmup_steps=250, milestones=(122_916, 133_159)),
        train=TrainConfig(steps=138_281, made_for_batch=64, log_every=50, eval_every=5000, save_every=1000),
        eval=EvalConfig(batch=8),
    )


def segment_ade20k_b() -> Recipe:
    """Semantic segmentation on ADE20K's 150 classes with ViT-B.

    deepspeed --hostfile HOSTS --module sam_ds train --recipe segment_ade20k_b --data /data/ADEChallengeData2016
        --deepspeed_config ds_configs/zero2_a100x8_batch16.json --set model.init=mae_pretrain_vit_base.pth

    Hardware: 8 A100, two pictures on each. Time and score: not yet run at scale. MAE with UPerNet has 48.1 mIoU [mae],
    measured in windows of 512 pixels; here a picture is seen once, its longer side 1,024.
    Data: ADE20K's scene parsing set as it ships: images/ and annotations/, training and validation in each.

    Length    160,000 steps x 16 pictures = 2.56 M pictures = 127 epochs                               [mmseg]
    Optimizer AdamW, lr 1e-4, betas .9/.999, weight decay .05, layer decay .65                         [mmseg]
    Schedule  1,500 steps of linear warm-up [mmseg], then half a cosine to 0 (a line there)            [here]
    Model     drop path .1 [mmseg]; the simple feature pyramid, and a head that adds its levels up     [here]
    Data      jitter of .5 to 2, flip, colour jitter [mmseg], in crops of 1,024 pixels, not 512        [here]
    """
    return Recipe(
        name="segment_ade20k_b",
        task="segment_classes",
        model=ModelConfig(preset="vit_b", drop_path=0.1),
        data=DataConfig(
            workers=8,
            transforms=TransformConfig(
                flip=0.5, scale_jitter=(0.5, 2.0), brightness=0.125, contrast=0.5, saturation=0.5, hue=0.1
            ),
        ),
        optim=OptimConfig(lr=1e-4, weight_decay=0.05, layer_decay=0.65),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=1500),
        train=TrainConfig(steps=160_000, made_for_batch=16, log_every=50, eval_every=8000, save_every=1000),
        eval=EvalConfig(batch=2),
    )


def vitdet_tiny() -> Recipe:
    """A detector small enough to learn a handful of pictures by heart on two CPU cores, from random weights.

    sam-ds train --recipe vitdet_tiny --data FOLDER     laid out as COCO, with one category

    Hardware: two CPU cores. Measured on eight pictures of nuclei: 72.5 % box AP, 91.9 % at an IoU of .5, on the same
    pictures (benchmarks/results/downstream.csv). All numbers are this project's.
    """
    return Recipe(
        name="vitdet_tiny",
        task="detect_objects",
        model=ModelConfig(preset="tiny_256"),
        data=DataConfig(workers=1, transforms=TransformConfig(flip=0.5)),
        detect=DetectConfig(num_classes=1, num_queries=150, decoder_layers=3),
        optim=OptimConfig(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=20, final=0.02),
        train=TrainConfig(steps=250, log_every=10, eval_every=0, save_every=100),
        eval=EvalConfig(max_pictures=32),
    )


def segment_tiny() -> Recipe:
    """A semantic segmenter small enough to learn a handful of pictures by heart on two CPU cores, from random weights.

    sam-ds train --recipe segment_tiny --data FOLDER     laid out as ADE20K, with two classes

    Hardware: two CPU cores. Measured on eight pictures of nuclei: 92.2 % mIoU on the same pictures, where the commonest
    class everywhere has 48.2 % (benchmarks/results/downstream.csv). All numbers are this project's.
    """
    return Recipe(
        name="segment_tiny",
        task="segment_classes",
        model=ModelConfig(preset="tiny_256"),
        data=DataConfig(workers=1, transforms=TransformConfig(flip=0.5)),
        classes=ClassesConfig(num_classes=2),
        optim=OptimConfig(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=20, final=0.02),
        train=TrainConfig(steps=120, log_every=10, eval_every=0, save_every=100),
        eval=EvalConfig(max_pictures=32),
    )


def _large_scale_jitter() -> DataConfig:
    return DataConfig(workers=8, transforms=TransformConfig(flip=0.5, scale_jitter=(0.1, 2.0)))
