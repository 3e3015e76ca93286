"""recipe.json: what is written is what is read, and its hash is stable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sam_ds import recipes
from sam_ds.config import overrides, recipe_file
from sam_ds.config.errors import UserError


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_survives_its_file(name: str, tmp_path: Path) -> None:
    recipe = recipes.get(name)
    assert recipe.name == name
    recipe_file.save(recipe, tmp_path / "recipe.json")
    assert recipes.get(str(tmp_path / "recipe.json")) == recipe


def test_the_hash_follows_the_settings_only() -> None:
    recipe = recipes.get("tiny")
    assert recipe_file.digest(recipe) == recipe_file.digest(recipes.get("tiny"))
    assert recipe_file.digest(recipe) != recipe_file.digest(overrides.apply(recipe, ["seed=7"]))
    code = (
        "from sam_ds import recipes; from sam_ds.config import recipe_file as f; print(f.digest(recipes.get('tiny')))"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert elsewhere.stdout.strip() == recipe_file.digest(recipe)


def test_flatten_gives_names_that_set_takes() -> None:
    recipe = recipes.get("sam_vit_h_curriculum")
    flat = recipe_file.flatten(recipe)
    assert flat["optim.frozen_encoder_steps"] == 1250
    settings = [f"{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in flat.items()]
    assert overrides.apply(recipes.get("tiny"), settings) == recipe


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optim": {"lrr": 1}}, ["optim.lrr", "did you mean lr"]),
        ({"optim": {"lr": "1"}}, ["optim.lr must be a number"]),
        ({"train": 3}, ["train must be a JSON object"]),
        ({"optim": {"betas": [0.9]}}, ["optim.betas must be 2 numbers"]),
        ({"name": None}, ["name must be a text"]),
    ],
)
def test_a_wrong_file_is_one_clear_line(change: dict[str, object], words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"name": "x", **change}))
    with pytest.raises(UserError) as caught:
        recipe_file.load(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_a_file_that_is_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        recipe_file.load(tmp_path / "recipe.json")
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        recipe_file.load(tmp_path / "recipe.json")
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(UserError, match="no name"):
        recipe_file.load(tmp_path / "recipe.json")


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean sam_vit_h"):
        recipes.get("sam_vith")
