"""A trained model by the path a user gives: what ``eval`` and ``predict`` have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sam_ds.cli.export import add_raw_option
from sam_ds.config.errors import UserError

if TYPE_CHECKING:
    import torch

    from sam_ds.config.schema import Recipe


PROMPTED = "segment_images"  # the task whose models answer to clicks and boxes


class Loaded(NamedTuple):
    model: Any  # of the recipe's task
    recipe: Recipe
    weights: Path


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which weights are taken, which model a file of them belongs to, and where it runs."""
    add_raw_option(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--recipe", help="for a file of weights: the recipe it was trained with")
    which.add_argument("--preset", help="for a file of weights: the size of the model, such as vit_b")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")


def load_whole(model: Any, weights: Path) -> None:
    """Raises UserError unless the file has all of the model's weights and no others."""
    from sam_ds.modeling.convert import load_weights

    load_weights(model, weights)


def load_model(
    source: Path,
    recipe: str | None,
    preset: str | None,
    settings: Sequence[str],
    raw: bool,
    load: Callable[[Any, Path], None] = load_whole,
) -> Loaded:
    """A model with the weights of a checkpoint, of a run's newest one, or of a .pth or .safetensors file.

    Args:
        load: gives the model what it needs of the file.

    Raises:
        UserError: there are no such weights, they are another model's, or nothing says which model they are.
    """
    from sam_ds import recipes
    from sam_ds.config import overrides
    from sam_ds.config.schema import ModelConfig, Recipe
    from sam_ds.storage.weights import find_weights

    if source.is_dir():
        weights = find_weights(source, raw)
        found = _recipe_of(weights.parent)
    elif not source.exists():
        raise UserError(f"there is nothing at {source}: give a run folder, a checkpoint or a file of weights")
    elif raw:
        raise UserError(f"--raw chooses among the weights of a checkpoint, and {source} is a file: leave it out")
    elif recipe:
        found, weights = recipes.get(recipe), source
    elif preset:
        found, weights = Recipe(preset, model=ModelConfig(preset=preset)), source
    else:
        raise UserError(f"{source} holds weights only: say which model they are with --recipe NAME or --preset vit_b")
    found = overrides.apply(found, settings)
    model = build_model(replace(found, model=replace(found.model, init="")))
    load(model, weights)
    return Loaded(model, found, weights)


def build_model(recipe: Recipe) -> Any:
    """A recipe's model with fresh weights, or with those of ``model.init``."""
    if recipe.task == PROMPTED and not recipe.model.init:
        from sam_ds.modeling.presets import build_sam

        return build_sam(recipe.model)
    # Here: the trainer takes seconds to import, and a click needs none of it.
    from sam_ds.training import first_weights, tasks

    return first_weights.build(tasks.kit(recipe.task), recipe).model


def _recipe_of(checkpoint: Path) -> Recipe:
    """The recipe a checkpoint was trained with."""
    from sam_ds.config import recipe_file
    from sam_ds.storage import checkpoints

    return recipe_file.from_dict(checkpoints.read_manifest(checkpoint).recipe, str(checkpoint / checkpoints.MANIFEST))


def choose_device(name: str) -> torch.device:
    """Raises UserError if this machine has no such device."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = (str(error).splitlines() or ["not available"])[0]
        raise UserError(f"--device {name}: {reason}") from None
    return device
