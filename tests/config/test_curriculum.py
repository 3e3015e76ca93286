"""Which settings hold at which step."""

from dataclasses import replace

import pytest

from sam_ds.config import curriculum, overrides
from sam_ds.config.errors import UserError
from sam_ds.config.schema import CurriculumConfig, Recipe, TrainConfig

RECIPE = Recipe(
    "r",
    train=TrainConfig(steps=10),
    curriculum=CurriculumConfig(parts=(0.6, 0.3, 0.1), crop_sizes=(64, 128, 0), correction_rounds=(0, 1, 2)),
)


def test_stages_follow_one_another() -> None:
    assert [first for first, _ in curriculum.stages(RECIPE)] == [0, 6, 9]
    held = [curriculum.at(RECIPE, step) for step in range(10)]
    assert [r.data.crop_size for r in held] == [64] * 6 + [128] * 3 + [0]
    assert [r.prompts.correction_rounds for r in held] == [0] * 6 + [1] * 3 + [2]


def test_what_the_curriculum_does_not_name_stays() -> None:
    last = curriculum.at(RECIPE, 9)
    assert last == replace(RECIPE, data=last.data, prompts=last.prompts)
    assert last.data.max_masks == RECIPE.data.max_masks
    assert curriculum.stages(Recipe("plain")) == [(0, Recipe("plain"))]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("curriculum.parts=0.5,0.4,0.2", "must sum to 1"),
        ("curriculum.crop_sizes=64,128", "one value for each of the 3 curriculum.parts"),
        ("curriculum.max_masks=0,1,1", "at least 1"),
        ("data.crop_size=64", "set curriculum.crop_sizes, or train in one stage with curriculum.parts="),
    ],
)
def test_stages_must_fit(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        overrides.apply(RECIPE, [setting])


def test_without_parts_there_is_no_curriculum() -> None:
    plain = overrides.apply(RECIPE, ["curriculum.parts=", "data.crop_size=64"])
    assert curriculum.stages(plain) == [(0, plain)] and plain.data.crop_size == 64
