"""Changing a recipe from the command line: ``--set optim.lr=4e-4``, typed by the schema's annotations."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from typing import Any

from sam_ds.config import tree
from sam_ds.config.curriculum import REPLACED
from sam_ds.config.errors import UserError, nearest
from sam_ds.config.schema import Recipe
from sam_ds.config.secrets import without_passwords
from sam_ds.config.validate import validate

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def apply(recipe: Recipe, settings: Iterable[str], option: str = "--set") -> Recipe:
    """The recipe with every ``name=value`` of ``settings`` applied in order, checked as a whole at the end.

    Lists are written with commas: ``eval.clicks=1,3,5``; an empty value is an empty list. ``option`` is where the
    settings come from, for messages.

    Raises:
        UserError: a name that is not in the schema, a value of the wrong type, or a recipe that does not hold
            together.
    """
    known, changed = dict(tree.leaves(Recipe)), {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip()
        if without_passwords(setting) != setting:
            raise UserError(f"{option} {name}: a recipe is written down and shown to others, so may hold no password")
        if not equals:
            raise UserError(f"{option} {setting}: write it as name=value, for example optim.lr=4e-4")
        if name not in known:
            raise UserError(f"{option} {setting}: {_unknown(name, known)}")
        try:
            value = _parse(text.strip(), known[name])
        except ValueError:
            wanted = tree.describe(known[name])
            raise UserError(f"{option} {setting}: {name} must be {wanted}, not {text.strip()!r}") from None
        recipe = tree.put(recipe, name, value)
        changed[name] = setting
    for name, by_stage in REPLACED.items():
        if name in changed and recipe.curriculum.parts and tree.get(recipe, by_stage):
            raise UserError(
                f"{option} {changed[name]}: the recipe's curriculum has a value for each stage; set {by_stage}, or "
                "train in one stage with curriculum.parts="
            )
    return validate(recipe)


def _unknown(name: str, known: Iterable[str]) -> str:
    inside = [other for other in known if other.startswith(name + ".")]
    if inside:
        return f"{name} is a group of settings: {', '.join(inside)}"
    same_leaf = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    hint = "did you mean " + " or ".join(same_leaf) + "?" if same_leaf else nearest(name, known)
    return f"the recipe has no setting {name!r}; {hint}"


def _parse(text: str, hint: Any) -> Any:
    """The text as the annotated type. Raises ValueError if it is not one."""
    if typing.get_origin(hint) is tuple:
        inner = text.strip("()[]").rstrip(",").strip()
        item = typing.get_args(hint)[0]
        values = [_parse(part.strip(), item) for part in inner.split(",")] if inner else []
        return tree.convert(values, hint)
    if hint is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError(text)
        return _BOOLEANS[text.lower()]
    if hint is int:
        return tree.convert(_whole(text), int)
    return tree.convert(float(text), float) if hint is float else text


def _whole(text: str) -> int:
    """A whole number, also as 9e4."""
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if not value.is_integer():
            raise
        return int(value)
