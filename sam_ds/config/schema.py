"""The recipe: everything that defines *what* is trained. How it is spread lies in the DeepSpeed config.

A recipe is a tree of frozen dataclasses of plain values, so it can be printed, diffed, hashed, and changed from
the command line (``--set optim.lr=4e-4``). Every field is read by something: there are no dead options.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    preset: str = "vit_b"  # a name in modeling.presets
    drop_path: float = 0.0  # stochastic depth of the last encoder block, rising linearly from 0
    init: str = ""  # weights of SAM or a plain ViT (MAE) to start from: a file, run folder or checkpoint; empty: random
    position_prior: float = 0.0  # random weights: how much prompts attend to their own place at first; 0: as released
    checkpointing: str = "none"  # none | torch | fairscale: recompute encoder blocks (and decoder rounds) in backward
    checkpoint_offload: bool = False  # fairscale only: keep the recomputation's inputs in host memory
    attention: str = "auto"  # auto | reference | sdpa | blocked | triton: which rel_pos_attention


@dataclass(frozen=True)
class TransformConfig:
    """Random changes of a training picture. Evaluation never uses them."""

    flip: float = 0.0  # chance of a horizontal flip
    scale_jitter: tuple[float, float] = (1.0, 1.0)  # large-scale jitter: the range of the resize factor
    crop: tuple[float, float] = (1.0, 1.0)  # range of the side of a random crop, as a part of the picture's
    object_crop: float = 0.0  # chance of a crop around a randomly chosen object instead
    object_crop_sides: tuple[float, float] = (3.0, 12.0)  # its side, in multiples of sqrt(mask area)
    rotate: float = 0.0  # largest rotation, degrees either way
    shear: float = 0.0  # largest shear, degrees either way
    affine_scale: tuple[float, float] = (1.0, 1.0)  # range of the factor of the affine change
    brightness: float = 0.0  # colour jitter: factors are drawn from [1 - v, 1 + v]
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # as a part of the colour circle, at most 0.5
    area: tuple[float, float] = (1.0, 1.0)  # random resized crop: the range of its part of the picture's area
    aspect: tuple[float, float] = (1.0, 1.0)  # and of its width by its height


@dataclass(frozen=True)
class DataConfig:
    max_masks: int = 64  # masks drawn from a picture
    crop_size: int = 0  # train on a crop of the model's input of this side, pixels; 0: on the whole input
    max_area: float = 0.9  # masks over this part of the picture are dropped (SAM, appendix)
    min_area: int = 1  # pixels in the source; smaller masks are dropped
    min_predicted_iou: float = 0.0
    min_stability: float = 0.0
    exact: bool = False  # decode the whole JPEG before resizing, instead of the DCT-scaled decode
    workers: int = 2  # loader processes a rank; 0 loads in the training process
    bad_budget: float = 0.01  # the run stops when more than this part of the samples seen was bad
    transforms: TransformConfig = TransformConfig()


@dataclass(frozen=True)
class PromptConfig:
    """How prompts are drawn. The chances of the first prompt's kinds sum to 1."""

    point: float = 0.5
    box: float = 0.5
    mask: float = 0.0
    none: float = 0.0
    num_points: tuple[float, ...] = (1.0,)  # chance of 1, 2, … points when the first prompt is points
    correction_rounds: int = 8  # rounds with one more point from the error region
    extra_rounds: int = 2  # rounds with no new point: one at a random place, the others last
    box_noise: float = 0.1  # standard deviation of each corner coordinate, as a part of the side
    box_noise_max: float = 20.0  # pixels of a 1024-pixel input

    @property
    def rounds(self) -> int:
        return 1 + self.correction_rounds + self.extra_rounds


@dataclass(frozen=True)
class LossConfig:
    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    focal_alpha: float = 0.25  # weight of foreground pixels; negative: both count alike
    focal_gamma: float = 2.0
    iou_masks: str = "best"  # best: only the trained mask's predicted IoU is trained | all: those of all allowed masks
    resolution: str = "input"  # input: upsample the logits to S first | logits: compare on the logits' grid
    mean_over_rounds: bool = False  # False: the sum over rounds (as SAM 2's public trainer)
    implementation: str = "auto"  # auto | reference | fused | triton: which mask_loss


@dataclass(frozen=True)
class MaeConfig:
    """Masked autoencoding. The decoder's sizes come with the preset."""

    mask_ratio: float = 0.75  # of the patches
    normalize_pixels: bool = True  # each patch's pixels are standardised by their own mean and variance first


@dataclass(frozen=True)
class ClassifyConfig:
    num_classes: int = 1000
    label_smoothing: float = 0.0
    # The other picture is a neighbour in the rank's micro-batch: on another number of ranks it is another picture.
    mixup: float = 0.0  # alpha of the Beta distribution that two pictures are mixed by; 0: never
    cutmix: float = 0.0  # alpha of the Beta distribution of the area that is cut from another picture; 0: never


@dataclass(frozen=True)
class DetectConfig:
    """Boxes with classes. The head has the channels and heads of the preset's decoder."""

    num_classes: int = 80
    num_queries: int = 300  # boxes found in a picture at most
    decoder_layers: int = 6


@dataclass(frozen=True)
class ClassesConfig:
    """A class for every pixel."""

    num_classes: int = 150


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 8e-4
    lr_batch: int = 0  # lr is that of so many pictures a step, and grows with the global batch; 0: lr as it is
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.1
    layer_decay: float = 1.0  # factor of the learning rate from one encoder block to the one below
    implementation: str = "auto"  # auto | torch | deepspeed_cpu | deepspeed_fused | apex_fused
    frozen_encoder_steps: int = 0  # first steps in which the image encoder is not trained
    ema_decay: float = 0.0  # a mean of the weights of all steps is kept and evaluated, the newest at 1 - this; 0: none


@dataclass(frozen=True)
class ScheduleConfig:
    kind: str = "step"  # step | cosine | constant | rsqrt
    warmup_steps: int = 250
    milestones: tuple[int, ...] = ()  # step only
    gamma: float = 0.1  # step only: the factor at each milestone
    final: float = 0.0  # cosine only: the factor at the end


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 90_000
    made_for_batch: int = 0  # pictures a step that lr and all numbers of steps are meant for; 0: any
    log_every: int = 10
    eval_every: int = 1000  # 0: before and after the training only
    save_every: int = 1000  # 0: at the end only
    keep_last: int = 3
    keep_best: bool = True  # by the task's score: of a SAM, mIoU at the last number of clicks
    keep_every: int = 0  # checkpoints of every so many steps stay too; 0: none
    mirror: str = ""  # a URL for fsspec, s3://bucket/run say: checkpoints are copied there, and fetched from there
    async_save: bool = True  # write checkpoints beside the training, which then waits only for the copy to the host
    max_skipped: int = 50  # steps in a row without a finite gradient; then rewind (fp16 looks for its scale in some 20)
    spike_factor: float = 4.0  # a reported loss so many times the median of the last 20 is a spike; 0: never
    spike_reports: int = 3  # spikes in a row; then rewind
    max_rewinds: int = 3  # to the same checkpoint; then the training ends


@dataclass(frozen=True)
class CurriculumConfig:
    """Stages of a training. A list that is not empty has one value a stage, in place of the setting it names."""

    parts: tuple[float, ...] = ()  # of train.steps, summing to 1; empty: one stage, as without a curriculum
    crop_sizes: tuple[int, ...] = ()  # data.crop_size
    max_masks: tuple[int, ...] = ()  # data.max_masks
    correction_rounds: tuple[int, ...] = ()  # prompts.correction_rounds


@dataclass(frozen=True)
class EvalConfig:
    clicks: tuple[int, ...] = (1, 3, 5, 8)
    box: bool = True
    max_pictures: int = 0  # 0: all
    max_masks: int = 0  # a picture; 0: all
    batch: int = 4  # pictures
    pictures: int = 8  # overlays drawn


@dataclass(frozen=True)
class TrackingConfig:
    mlflow: bool = True
    tensorboard: bool = False
    experiment: str = "sam_ds"  # MLflow's
    parent: str = ""  # name of an MLflow run that this one is shown below, with the others of a sweep or a job
    hosts_every: int = 30  # seconds between two looks at each host's processors, memory, network and GPUs; 0: none


@dataclass(frozen=True)
class Recipe:
    name: str
    task: str = "segment_images"
    pretrain: str = ""  # a recipe that is trained first in the same run folder; its encoder is where this one starts
    seed: int = 0
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    prompts: PromptConfig = PromptConfig()
    loss: LossConfig = LossConfig()
    mae: MaeConfig = MaeConfig()
    classify: ClassifyConfig = ClassifyConfig()
    detect: DetectConfig = DetectConfig()
    classes: ClassesConfig = ClassesConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    eval: EvalConfig = EvalConfig()
    tracking: TrackingConfig = TrackingConfig()
