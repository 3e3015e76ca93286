"""What tasks on SAM's image encoder tell the engine of it."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from sam_ds.config.schema import Recipe
from sam_ds.modeling.vit import Attention


def trunk_layer(name: str) -> int | None:
    """The layer of a parameter, for layer-wise learning rates: 0 the embedding, i + 1 block i, None elsewhere."""
    block = re.search(r"image_encoder\.blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if re.search(r"image_encoder\.(pos_embed|patch_embed)", name) else None


class TrunkTask(nn.Module):
    """A task whose model has SAM's trunk as ``image_encoder`` and a head that runs once a step."""

    def __init__(self, recipe: Recipe, model: Any) -> None:
        super().__init__()
        self.recipe = recipe
        self.model = model

    @property
    def encoder(self) -> nn.Module:
        """What a frozen-encoder phase freezes."""
        return self.model.image_encoder

    def checkpointed(self) -> dict[str, list[nn.Module]]:
        """Modules whose activations may be recomputed."""
        return {"once": list(self.model.image_encoder.blocks), "reused": []}

    def leaf_modules(self) -> list[type[nn.Module]]:
        """Classes that ZeRO-3 gathers whole: they read their children's weights."""
        return [Attention]

    @property
    def num_layers(self) -> int:
        """Layers of layer-wise learning-rate decay: the embedding is 0, block i is i + 1, all else is undecayed."""
        return len(self.model.image_encoder.blocks) + 1

    def layer_of(self, name: str) -> int | None:
        """The layer of a parameter, None outside the encoder's trunk."""
        return trunk_layer(name)
