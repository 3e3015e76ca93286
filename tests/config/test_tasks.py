"""Settings that a task does not look at are refused."""

from __future__ import annotations

import pytest

from sam_ds import recipes
from sam_ds.config import overrides
from sam_ds.config.errors import UserError

IDLE = {
    "prompts": ("mae_tiny", "prompts.extra_rounds=1"),
    "curriculum": ("mae_tiny", "curriculum.crop_sizes=64"),
    "model.attention": ("mae_tiny", "model.attention=triton"),
    "model.position_prior": ("mae_tiny", "model.position_prior=1"),
    "data.crop_size": ("vit_tiny_classify", "data.crop_size=64"),
    "data.transforms.rotate": ("mae_tiny", "data.transforms.rotate=10"),
    "optim.frozen_encoder_steps": ("mae_tiny", "optim.frozen_encoder_steps=5"),
    "eval.clicks": ("mae_tiny", "eval.clicks=1"),
    "mae": ("tiny", "mae.mask_ratio=0.5"),
    "data.transforms.area": ("tiny", "data.transforms.area=0.2,1"),
}


@pytest.mark.parametrize("name", IDLE)
def test_a_setting_of_another_task_is_refused(name: str) -> None:
    recipe, setting = IDLE[name]
    task = recipes.get(recipe).task
    with pytest.raises(UserError, match=rf"^{name} is set, which does nothing in task={task}: it belongs to task=\w+"):
        overrides.apply(recipes.get(recipe), [setting])
