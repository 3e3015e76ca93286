"""``sam-ds recipes``: what can be trained, and every setting of it."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from sam_ds import recipes
from sam_ds.config import overrides, recipe_file

_EXAMPLE = """examples:
  sam-ds recipes
  sam-ds recipes sam_vit_h
  sam-ds recipes tiny --set optim.lr=4e-4
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "recipes",
        help="list the recipes, or show one with every setting",
        description="List the recipes, or show one: its data sheet and every setting, named as --set takes it.",
        epilog=_EXAMPLE,
    )
    parser.add_argument("name", nargs="?", help="a recipe, or the recipe.json of a run folder")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting first")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    print(_show(args.name, args.set) if args.name else _list())
    return 0


def _list() -> str:
    width = max(map(len, recipes.RECIPES))
    return "\n".join(f"{name:<{width}}  {_sheet(name).splitlines()[0]}" for name in recipes.RECIPES)


def _show(name: str, settings: list[str]) -> str:
    recipe = overrides.apply(recipes.get(name), settings)
    sheet = _sheet(name) + "\n\n" if name in recipes.RECIPES else ""
    lines = [f"{key} = {_value(value)}" for key, value in recipe_file.flatten(recipe).items()]
    return f"{sheet}" + "\n".join(lines) + f"\n\nhash {recipe_file.digest(recipe)}"


def _sheet(name: str) -> str:
    return inspect.getdoc(recipes.RECIPES[name]) or ""


def _value(value: object) -> str:
    """A value as --set takes it."""
    if isinstance(value, tuple):
        return ",".join(map(_value, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
