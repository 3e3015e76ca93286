"""The recipes by name. Each is a function that returns a Recipe; its docstring is its data sheet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sam_ds.config import recipe_file
from sam_ds.config.errors import UserError, nearest
from sam_ds.config.schema import Recipe
from sam_ds.config.validate import validate
from sam_ds.recipes.downstream import segment_ade20k_b, segment_tiny, vitdet_b_coco, vitdet_h_coco, vitdet_tiny
from sam_ds.recipes.mae import mae_meta_sam_large, mae_tiny, mae_vit_b, mae_vit_h, mae_vit_l
from sam_ds.recipes.meta_sam_large import meta_sam_large
from sam_ds.recipes.sam import sam_vit_b, sam_vit_h, sam_vit_h_curriculum, sam_vit_l
from sam_ds.recipes.tiny import tiny, tiny_from_mae
from sam_ds.recipes.vit_huge14 import vit_huge14_in1k_finetune, vit_huge14_in21k, vit_tiny_classify

RECIPES: dict[str, Callable[[], Recipe]] = {
    "tiny": tiny,
    "sam_vit_b": sam_vit_b,
    "sam_vit_l": sam_vit_l,
    "sam_vit_h": sam_vit_h,
    "sam_vit_h_curriculum": sam_vit_h_curriculum,
    "meta_sam_large": meta_sam_large,
    "tiny_from_mae": tiny_from_mae,
    "mae_tiny": mae_tiny,
    "mae_vit_b": mae_vit_b,
    "mae_vit_l": mae_vit_l,
    "mae_vit_h": mae_vit_h,
    "mae_meta_sam_large": mae_meta_sam_large,
    "vitdet_tiny": vitdet_tiny,
    "vitdet_b_coco": vitdet_b_coco,
    "vitdet_h_coco": vitdet_h_coco,
    "segment_tiny": segment_tiny,
    "segment_ade20k_b": segment_ade20k_b,
    "vit_huge14_in21k": vit_huge14_in21k,
    "vit_huge14_in1k_finetune": vit_huge14_in1k_finetune,
    "vit_tiny_classify": vit_tiny_classify,
}


def get(name: str) -> Recipe:
    """The recipe of that name, or the one in a run folder's ``recipe.json``.

    Raises:
        UserError: there is no such recipe; the nearest names are given.
    """
    if name.endswith(".json"):
        return recipe_file.load(Path(name))
    if name not in RECIPES:
        raise UserError(f"no recipe {name!r}; {nearest(name, RECIPES)}")
    return validate(RECIPES[name]())
