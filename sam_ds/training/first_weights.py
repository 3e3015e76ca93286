"""What ``model.init`` means: found, and compared with the model that is to start from it, before that is built."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sam_ds.config.errors import UserError
from sam_ds.config.schema import Recipe
from sam_ds.modeling import handover
from sam_ds.modeling.convert import Shapes, read_weights, shapes_of
from sam_ds.modeling.handover import Handover
from sam_ds.storage.weights import find_weights

if TYPE_CHECKING:
    from sam_ds.training.tasks import Kit


def look(kit: Kit, recipe: Recipe) -> Handover | None:
    """What the recipe's model takes of the weights that ``model.init`` names; None if it names none.

    Raises:
        UserError: they are not there, damaged, or not such as the model can start from.
    """
    if not recipe.model.init:
        return None
    path = str(_file(recipe.model.init))
    return handover.plan(shapes(kit, recipe), shapes_of(read_weights(path)), path)


def build(kit: Kit, recipe: Recipe, weights: str | None = None) -> Any:
    """The task, built from the file ``weights`` (None: the one that ``model.init`` means) where the recipe has an init.

    Raises:
        UserError: as ``look``.
    """
    if recipe.model.init:
        recipe = with_init(recipe, str(_file(recipe.model.init)) if weights is None else weights)
    return kit.build(recipe)


def with_init(recipe: Recipe, init: str) -> Recipe:
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, init=init))


def shapes(kit: Kit, recipe: Recipe) -> Shapes:
    """Of the weights and buffers of the recipe's model."""
    return shapes_of(_outline(kit, recipe).model.state_dict())


def count(kit: Kit, recipe: Recipe) -> int:
    """Parameters of the recipe's task."""
    return sum(parameter.numel() for parameter in _outline(kit, recipe).parameters())


def _outline(kit: Kit, recipe: Recipe) -> Any:
    """The task without numbers."""
    with torch.device("meta"):
        return kit.build(with_init(recipe, ""))


def _file(init: str) -> Path:
    """The file: itself, or that of a run folder's newest whole checkpoint."""
    path = Path(init)
    if not path.exists():
        raise UserError(f"model.init={init}: there is nothing; give a .pth, .safetensors, run folder or checkpoint")
    return find_weights(path) if path.is_dir() else path
