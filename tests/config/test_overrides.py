"""--set: typed by the schema, and a mistake gives one line that names what would be right."""

from __future__ import annotations

import pytest

from sam_ds.config import overrides, tree
from sam_ds.config.errors import UserError
from sam_ds.config.schema import Recipe
from sam_ds.config.validate import _CHOICES, _RANGES, validate

RECIPE = Recipe(name="test")


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("optim.lr=4e-4", "optim.lr", 4e-4),
        ("optim.lr=1", "optim.lr", 1.0),
        ("train.steps=1e3", "train.steps", 1000),
        ("train.steps=90_000", "train.steps", 90_000),
        ("tracking.mlflow=False", "tracking.mlflow", False),
        ("tracking.tensorboard=1", "tracking.tensorboard", True),
        ("model.init=a=b.pth", "model.init", "a=b.pth"),
        ("eval.clicks=1,3", "eval.clicks", (1, 3)),
        ("eval.clicks=(2,)", "eval.clicks", (2,)),
        ("schedule.milestones=", "schedule.milestones", ()),
        ("data.transforms.crop=0.8, 1.2", "data.transforms.crop", (0.8, 1.2)),
        (" seed = 3 ", "seed", 3),
    ],
)
def test_a_setting_takes_the_type_of_the_schema(setting: str, name: str, value: object) -> None:
    changed = tree.get(overrides.apply(RECIPE, [setting]), name)
    assert changed == value
    assert type(changed) is type(value)


def test_later_settings_win_and_the_recipe_itself_stays() -> None:
    changed = overrides.apply(RECIPE, ["optim.lr=1e-3", "optim.lr=2e-3"])
    assert changed.optim.lr == 2e-3
    assert RECIPE.optim.lr == Recipe(name="test").optim.lr


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("optim.lr", ["name=value"]),
        ("optim.rate=1", ["optim.rate", "optim.lr_batch"]),
        ("lr=1", ["optim.lr"]),
        ("optim.leyer_decay=.5", ["did you mean optim.layer_decay"]),
        ("optim=1", ["group", "optim.lr"]),
        ("optim.lr=fast", ["optim.lr must be a number", "'fast'"]),
        ("optim.lr=nan", ["optim.lr must be a number"]),
        ("train.steps=1.5", ["train.steps must be a whole number"]),
        ("tracking.mlflow=maybe", ["true or false"]),
        ("data.transforms.crop=1", ["2 numbers separated by commas"]),
        ("eval.clicks=1,x", ["whole numbers separated by commas"]),
        ("loss.resolution=inputs", ["loss.resolution=inputs", "input"]),
        ("eval.clicks=3,1", ["must rise"]),
        ("eval.clicks=", ["eval.clicks is empty"]),
        ("prompts.point=0.7", ["1.2", "sum to 1"]),
        ("prompts.num_points=0.5,0.1", ["sums to 0.6"]),
        ("train.steps=0", ["at least 1"]),
        ("data.max_area=2", ["from 0 to 1"]),
        ("data.transforms.scale_jitter=2,1", ["must rise"]),
        ("model.checkpoint_offload=true", ["fairscale"]),
        ("optim.lr=0", ["above 0"]),
    ],
)
def test_a_mistake_is_one_clear_line(setting: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        overrides.apply(RECIPE, [setting])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_every_number_has_a_range_and_every_range_a_number() -> None:
    numbers = {name for name, hint in tree.leaves(Recipe) if "int" in str(hint) or "float" in str(hint)}
    assert numbers == set(_RANGES)


def test_every_choice_is_a_setting_and_the_defaults_hold_together() -> None:
    assert set(_CHOICES) <= {name for name, _ in tree.leaves(Recipe)}
    assert validate(RECIPE) is RECIPE
