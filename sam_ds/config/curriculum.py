"""Stages of a training: which settings hold at which step."""

from __future__ import annotations

import bisect
from dataclasses import replace
from itertools import accumulate

from sam_ds.config.schema import Recipe

# The settings that a curriculum's lists take the place of.
REPLACED = {
    "data.crop_size": "curriculum.crop_sizes",
    "data.max_masks": "curriculum.max_masks",
    "prompts.correction_rounds": "curriculum.correction_rounds",
}


def stages(recipe: Recipe) -> list[tuple[int, Recipe]]:
    """The first step of every stage, ascending from 0, and the recipe as it holds in it."""
    curriculum = recipe.curriculum
    if not curriculum.parts:
        return [(0, recipe)]
    before = accumulate(curriculum.parts[:-1], initial=0.0)
    firsts = [round(part * recipe.train.steps) for part in before]
    return [(first, _stage(recipe, index)) for index, first in enumerate(firsts)]


def at(recipe: Recipe, step: int) -> Recipe:
    """The recipe as it holds at ``step``."""
    known = stages(recipe)
    return known[bisect.bisect_right([first for first, _ in known], step) - 1][1]


def _stage(recipe: Recipe, index: int) -> Recipe:
    curriculum, data, prompts = recipe.curriculum, recipe.data, recipe.prompts
    if curriculum.crop_sizes:
        data = replace(data, crop_size=curriculum.crop_sizes[index])
    if curriculum.max_masks:
        data = replace(data, max_masks=curriculum.max_masks[index])
    if curriculum.correction_rounds:
        prompts = replace(prompts, correction_rounds=curriculum.correction_rounds[index])
    return replace(recipe, data=data, prompts=prompts)
