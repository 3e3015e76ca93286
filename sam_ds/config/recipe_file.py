"""A recipe as JSON: the run folder's ``recipe.json``, and a hash that names its contents."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from sam_ds.config import tree
from sam_ds.config.errors import UserError, nearest
from sam_ds.config.schema import Recipe
from sam_ds.config.validate import validate


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain values (tuples stay tuples; JSON writes them as lists)."""
    return dataclasses.asdict(recipe)


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Every setting by its dotted name, in the order of the schema: what ``--set`` takes and MLflow logs."""
    return {name: tree.get(recipe, name) for name, _ in tree.leaves(Recipe)}


def from_dict(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """The recipe that ``to_dict`` gave. A setting that is not there takes the schema's default.

    Raises:
        UserError: an unknown setting, a value of the wrong type, or a recipe that does not hold together.
    """
    return validate(_build(Recipe, values, where, ""))


def save(recipe: Recipe, path: Path) -> None:
    path.write_text(json.dumps(to_dict(recipe), indent=2) + "\n", encoding="utf-8")


def load(path: Path) -> Recipe:
    """Read a ``recipe.json``. Raises UserError if it is not there or not a recipe."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the recipe ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    return from_dict(values, str(path))


def digest(recipe: Recipe) -> str:
    """12 hexadecimal digits that are equal for equal settings, on every machine and in every process."""
    text = json.dumps(to_dict(recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _build(cls: type, values: Any, where: str, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{where}: {prefix.rstrip('.') or 'the recipe'} must be a JSON object")
    hints = tree.hints(cls)
    arguments = {}
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"{where}: no setting {prefix + name!r}; {nearest(name, hints)}")
        if dataclasses.is_dataclass(hints[name]):
            arguments[name] = _build(hints[name], value, where, f"{prefix}{name}.")
            continue
        try:
            arguments[name] = tree.convert(value, hints[name])
        except ValueError:
            raise UserError(f"{where}: {prefix + name} must be {tree.describe(hints[name])}, not {value!r}") from None
    if cls is Recipe and "name" not in arguments:
        raise UserError(f"{where}: the recipe has no name")
    return cls(**arguments)
