"""Does a recipe hold together? Types are the schema's business; here are choices, ranges, and sums."""

from __future__ import annotations

import itertools
import math

from sam_ds.config import tree
from sam_ds.config.errors import UserError, nearest
from sam_ds.config.schema import CurriculumConfig, PromptConfig, Recipe

_MASKS, _MAE, _CLASSES = "segment_images", "pretrain_mae", "classify_images"
_BOXES, _PIXELS = "detect_objects", "segment_classes"
_TASKS = (_MASKS, _MAE, _CLASSES, _BOXES, _PIXELS)
_TRUNK = (_MASKS, _BOXES, _PIXELS)  # SAM's image encoder, and views of pictures that it sees

# Settings and sections that only some tasks look at, and which.
_READERS: dict[str, tuple[str, ...]] = {
    "prompts": (_MASKS,),
    "loss": (_MASKS,),
    "curriculum": (_MASKS,),
    "mae": (_MAE,),
    "classify": (_CLASSES,),
    "detect": (_BOXES,),
    "classes": (_PIXELS,),
    "model.position_prior": (_MASKS,),
    "model.attention": _TRUNK,
    "data.max_masks": (_MASKS,),
    "data.crop_size": (_MASKS, _MAE),
    "data.max_area": (_MASKS,),
    "data.min_area": (_MASKS,),
    "data.min_predicted_iou": (_MASKS,),
    "data.min_stability": (_MASKS,),
    "data.transforms.scale_jitter": _TRUNK,
    "data.transforms.crop": _TRUNK,
    "data.transforms.object_crop": (_MASKS,),
    "data.transforms.object_crop_sides": (_MASKS,),
    "data.transforms.rotate": _TRUNK,
    "data.transforms.shear": _TRUNK,
    "data.transforms.affine_scale": _TRUNK,
    "data.transforms.area": (_MAE, _CLASSES),
    "data.transforms.aspect": (_MAE, _CLASSES),
    "optim.frozen_encoder_steps": (*_TRUNK, _CLASSES),
    "eval.clicks": (_MASKS,),
    "eval.box": (_MASKS,),
    "eval.max_masks": (_MASKS,),
}

_CHOICES: dict[str, tuple[str, ...]] = {
    "task": _TASKS,
    "model.checkpointing": ("none", "torch", "fairscale"),
    "model.attention": ("auto", "reference", "sdpa", "blocked", "triton"),
    "loss.iou_masks": ("best", "all"),
    "loss.resolution": ("input", "logits"),
    "loss.implementation": ("auto", "reference", "fused", "triton"),
    "optim.implementation": ("auto", "torch", "deepspeed_cpu", "deepspeed_fused", "apex_fused"),
    "schedule.kind": ("step", "cosine", "constant", "rsqrt"),
}

_INF = math.inf
_CHANCE = (0.0, 1.0)
# The closed range of every number (of every item, where the setting is a list).
_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "model.drop_path": (0.0, 0.99),
    "model.position_prior": (0.0, _INF),
    "data.max_masks": (1, _INF),
    "data.crop_size": (0, _INF),
    "data.max_area": (0.0, 1.0),
    "data.min_area": (0, _INF),
    "data.min_predicted_iou": _CHANCE,
    "data.min_stability": _CHANCE,
    "data.workers": (0, _INF),
    "data.bad_budget": _CHANCE,
    "data.transforms.flip": _CHANCE,
    "data.transforms.scale_jitter": (0.01, 100.0),
    "data.transforms.crop": (0.01, 100.0),
    "data.transforms.object_crop": _CHANCE,
    "data.transforms.object_crop_sides": (1.0, 1000.0),
    "data.transforms.rotate": (0.0, 180.0),
    "data.transforms.shear": (0.0, 80.0),
    "data.transforms.affine_scale": (0.01, 100.0),
    "data.transforms.brightness": _CHANCE,
    "data.transforms.contrast": _CHANCE,
    "data.transforms.saturation": _CHANCE,
    "data.transforms.hue": (0.0, 0.5),
    "data.transforms.area": (0.01, 1.0),
    "data.transforms.aspect": (0.01, 100.0),
    "prompts.point": _CHANCE,
    "prompts.box": _CHANCE,
    "prompts.mask": _CHANCE,
    "prompts.none": _CHANCE,
    "prompts.num_points": _CHANCE,
    "prompts.correction_rounds": (0, 100),
    "prompts.extra_rounds": (0, 100),
    "prompts.box_noise": (0.0, 1.0),
    "prompts.box_noise_max": (0.0, _INF),
    "loss.focal": (0.0, _INF),
    "loss.dice": (0.0, _INF),
    "loss.iou": (0.0, _INF),
    "loss.focal_alpha": (-_INF, 1.0),
    "loss.focal_gamma": (0.0, _INF),
    "mae.mask_ratio": (0.01, 0.99),
    "classify.num_classes": (2, _INF),
    "classify.label_smoothing": (0.0, 0.99),
    "classify.mixup": (0.0, _INF),
    "classify.cutmix": (0.0, _INF),
    "detect.num_classes": (1, _INF),
    "detect.num_queries": (1, _INF),
    "detect.decoder_layers": (1, 100),
    "classes.num_classes": (2, 255),  # a label map has a byte a pixel, and 255 is no class
    "optim.lr": (0.0, _INF),
    "optim.lr_batch": (0, _INF),
    "optim.betas": (0.0, 0.999999),
    "optim.eps": (0.0, _INF),
    "optim.weight_decay": (0.0, _INF),
    "optim.layer_decay": (0.01, 1.0),
    "optim.frozen_encoder_steps": (0, _INF),
    "optim.ema_decay": (0.0, 0.999999),
    "schedule.warmup_steps": (0, _INF),
    "schedule.milestones": (1, _INF),
    "schedule.gamma": _CHANCE,
    "schedule.final": _CHANCE,
    "train.steps": (1, _INF),
    "train.made_for_batch": (0, _INF),
    "train.log_every": (1, _INF),
    "train.eval_every": (0, _INF),
    "train.save_every": (0, _INF),
    "train.keep_last": (1, _INF),
    "train.keep_every": (0, _INF),
    "train.max_skipped": (1, _INF),
    "train.spike_factor": (0.0, _INF),
    "train.spike_reports": (1, _INF),
    "train.max_rewinds": (0, _INF),
    "curriculum.parts": _CHANCE,
    "curriculum.crop_sizes": (0, _INF),
    "curriculum.max_masks": (1, _INF),
    "curriculum.correction_rounds": (0, 100),
    "eval.clicks": (1, 100),
    "eval.max_pictures": (0, _INF),
    "eval.max_masks": (0, _INF),
    "eval.batch": (1, _INF),
    "eval.pictures": (0, _INF),
    "tracking.hosts_every": (0, 86400),
}

# Pairs (low, high), and lists that must rise.
_RISING = (
    "data.transforms.scale_jitter",
    "data.transforms.crop",
    "data.transforms.object_crop_sides",
    "data.transforms.affine_scale",
    "data.transforms.area",
    "data.transforms.aspect",
)
_STRICTLY_RISING = ("schedule.milestones", "eval.clicks")


def validate(recipe: Recipe) -> Recipe:
    """The recipe itself, if it holds together.

    Raises:
        UserError: one line with the setting, its value, and what it may be.
    """
    for name, choices in _CHOICES.items():
        value = tree.get(recipe, name)
        if value not in choices:
            raise UserError(f"{name}={value}: {nearest(value, choices)}")
    for name, (low, high) in _RANGES.items():
        value = tree.get(recipe, name)
        for item in value if isinstance(value, tuple) else (value,):
            if not low <= item <= high:
                raise UserError(f"{name}={_show(value)}: must be {_range(low, high)}")
    for name in _RISING + _STRICTLY_RISING:
        _check_rising(name, tree.get(recipe, name), strictly=name in _STRICTLY_RISING)
    _check_readers(recipe)
    _check_chances(recipe.prompts)
    _check_curriculum(recipe.curriculum)
    _check_relations(recipe)
    return recipe


def _check_readers(recipe: Recipe) -> None:
    default = Recipe(recipe.name)
    for name, readers in _READERS.items():
        if recipe.task not in readers and tree.get(recipe, name) != tree.get(default, name):
            raise UserError(
                f"{name} is set, which does nothing in task={recipe.task}: it belongs to task={' or '.join(readers)}"
            )


def _check_rising(name: str, values: tuple[float, ...], strictly: bool) -> None:
    for before, after in itertools.pairwise(values):
        if after < before or (strictly and after == before):
            raise UserError(f"{name}={_show(values)}: the numbers must rise")


def _check_chances(prompts: PromptConfig) -> None:
    kinds = prompts.point + prompts.box + prompts.mask + prompts.none
    if not math.isclose(kinds, 1.0, abs_tol=1e-6):
        raise UserError(f"prompts.point + box + mask + none = {kinds:g}: the chances must sum to 1")
    points = sum(prompts.num_points)
    if not math.isclose(points, 1.0, abs_tol=1e-6):
        raise UserError(f"prompts.num_points={_show(prompts.num_points)} sums to {points:g}: it must sum to 1")


def _check_curriculum(curriculum: CurriculumConfig) -> None:
    parts = curriculum.parts
    if parts and not math.isclose(sum(parts), 1.0, abs_tol=1e-6):
        raise UserError(f"curriculum.parts={_show(parts)} sums to {sum(parts):g}: it must sum to 1")
    for name in ("crop_sizes", "max_masks", "correction_rounds"):
        values = getattr(curriculum, name)
        if parts and values and len(values) != len(parts):
            raise UserError(
                f"curriculum.{name}={_show(values)}: give one value for each of the {len(parts)} curriculum.parts"
            )


def _check_relations(recipe: Recipe) -> None:
    if recipe.model.checkpoint_offload and recipe.model.checkpointing != "fairscale":
        raise UserError(
            f"model.checkpoint_offload=true with model.checkpointing={recipe.model.checkpointing}: "
            "only checkpointing=fairscale can offload"
        )
    if recipe.optim.lr == 0.0:
        raise UserError("optim.lr=0: nothing would be trained; give a learning rate above 0")
    if 0.0 < recipe.train.spike_factor <= 1.0:
        raise UserError(f"train.spike_factor={recipe.train.spike_factor:g}: must be above 1, or 0 for no detection")
    if not recipe.eval.clicks:
        raise UserError("eval.clicks is empty: give the numbers of clicks to measure after, for example 1,3,5,8")


def _show(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _range(low: float, high: float) -> str:
    if high == _INF:
        return f"at least {low:g}"
    return f"at most {high:g}" if low == -_INF else f"from {low:g} to {high:g}"
