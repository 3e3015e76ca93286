"""Learning rates as pure functions: the rate of a batch, and the factor on it of a step. Nothing to save or restore."""

from __future__ import annotations

import math
from collections.abc import Callable

from sam_ds.config.errors import UserError, nearest
from sam_ds.config.schema import OptimConfig, Recipe, ScheduleConfig

Factor = Callable[[int], float]
_LARGEST_LR = 0.1  # AdamW moves every weight by about the rate in each step, and weights are smaller than one


def _step(config: ScheduleConfig, total_steps: int) -> Factor:
    """``gamma`` for every milestone passed."""
    return lambda step: config.gamma ** sum(step >= milestone for milestone in config.milestones)


def _cosine(config: ScheduleConfig, total_steps: int) -> Factor:
    """Half a cosine from 1 where the warm-up ends to ``final`` at the last step (arXiv 1608.03983)."""
    span = max(1, total_steps - config.warmup_steps)

    def factor(step: int) -> float:
        done = min(1.0, max(0.0, (step - config.warmup_steps) / span))
        return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def _constant(config: ScheduleConfig, total_steps: int) -> Factor:
    return lambda step: 1.0


def _rsqrt(config: ScheduleConfig, total_steps: int) -> Factor:
    """The reciprocal square root of the step, 1 where the warm-up ends (arXiv 1706.03762, 2106.04560)."""
    start = max(1, config.warmup_steps)
    return lambda step: math.sqrt(start / max(step, start))


SCHEDULES: dict[str, Callable[[ScheduleConfig, int], Factor]] = {
    "step": _step,
    "cosine": _cosine,
    "constant": _constant,
    "rsqrt": _rsqrt,
}


def factor(schedule: ScheduleConfig, total_steps: int) -> Factor:
    """The function from step (0 is the first) to the factor on the learning rate.

    During the first ``warmup_steps`` the factor also rises linearly: (step + 1) / warmup_steps of it.

    Raises:
        UserError: an unknown kind, a negative warm-up, or milestones that do not rise.
    """
    if schedule.kind not in SCHEDULES:
        raise UserError(f"schedule.kind={schedule.kind!r} is not known; {nearest(schedule.kind, SCHEDULES)}")
    if schedule.warmup_steps < 0:
        raise UserError(f"schedule.warmup_steps={schedule.warmup_steps} must not be negative")
    if list(schedule.milestones) != sorted(set(schedule.milestones)):
        raise UserError(f"schedule.milestones={schedule.milestones} must rise")
    base = SCHEDULES[schedule.kind](schedule, total_steps)

    def warmed(step: int) -> float:
        if step < schedule.warmup_steps:
            return base(step) * (step + 1) / schedule.warmup_steps
        return base(step)

    return warmed


def peak_lr(optim: OptimConfig, batch: int) -> float:
    """The learning rate that the schedule multiplies, in steps of ``batch`` pictures.

    It is ``lr``, or grows with the batch where ``lr_batch`` says which batch ``lr`` is meant for (the linear rule of
    arXiv 1706.02677, as MAE's recipe has it).

    Raises:
        UserError: the rule gives a rate that nothing would be trained with.
    """
    if not optim.lr_batch:
        return optim.lr
    lr = optim.lr * batch / optim.lr_batch
    if lr > _LARGEST_LR:
        raise UserError(
            f"optim.lr={optim.lr:g} for optim.lr_batch={optim.lr_batch} pictures is {lr:g} for the {batch} of a step: "
            f"more than {_LARGEST_LR:g} trains nothing; name the batch that optim.lr is meant for, or 0"
        )
    return lr


def batch_note(recipe: Recipe, batch: int, source: str) -> str:
    """What its user should know of a training in steps of ``batch`` pictures, as the DeepSpeed config ``source`` has
    them, with a recipe that is meant for others; "" of one that is not."""
    meant = recipe.train.made_for_batch
    if meant in (0, batch):
        return ""
    rate = "" if recipe.optim.lr_batch else f" and optim.lr={recipe.optim.lr:g}"
    return (
        f"{recipe.name} is made for {meant:,} pictures a step, and {source} has {batch:,}: "
        f"train.steps={recipe.train.steps} sees {batch / meant:.0%} of the pictures. Change it, the steps in schedule"
        f"{rate} to fit; train.made_for_batch={batch} says that they do"
    )
