"""What tasks on an encoder of blocks tell the engine of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sam_ds.config.schema import Recipe
from sam_ds.modeling.vit import Attention


@dataclass(frozen=True)
class PictureInputs:
    """Pictures on the device, each of which counts as much."""

    images: Tensor  # float32 [B, 3, S, S]  normalised

    @property
    def count(self) -> Tensor:
        """How many pictures count, a float32 scalar."""
        return torch.full((), float(len(self.images)), device=self.images.device)


class _EncoderTask(nn.Module):
    """A task whose model has an encoder of blocks and after it what runs once a step."""

    _trunk: str  # the name of the module that has the embedding and the blocks

    def __init__(self, recipe: Recipe, model: Any) -> None:
        super().__init__()
        self.recipe = recipe
        self.model = model

    @property
    def blocks(self) -> list[nn.Module]:
        """Those of the encoder."""
        trunk: Any = self.get_submodule(self._trunk)
        return list(trunk.blocks)

    def checkpointed(self) -> dict[str, list[nn.Module]]:
        """Modules whose activations may be recomputed: all run once a step."""
        return {"once": self.blocks, "reused": []}

    @property
    def num_layers(self) -> int:
        """Layers of layer-wise learning-rate decay: the embedding is 0, block i is i + 1, all else is undecayed."""
        return len(self.blocks) + 1

    def layer_of(self, name: str) -> int | None:
        """The layer of a parameter, None outside the encoder's embedding and blocks."""
        prefix = f"{self._trunk}."
        if not name.startswith(prefix):
            return None
        name = name.removeprefix(prefix)
        block = re.match(r"blocks\.(\d+)\.", name)
        if block:
            return int(block[1]) + 1
        return 0 if re.match(r"(cls_token|pos_embed|patch_embed)", name) else None


class TrunkTask(_EncoderTask):
    """A task whose model has SAM's trunk as ``image_encoder``."""

    _trunk = "model.image_encoder"

    @property
    def encoder(self) -> nn.Module:
        """What a frozen-encoder phase freezes."""
        return self.model.image_encoder

    def leaf_modules(self) -> list[type[nn.Module]]:
        """Classes that ZeRO-3 gathers whole: they read their children's weights."""
        return [Attention]


class PlainVitTask(_EncoderTask):
    """A task whose model is a plain ViT and what follows it."""

    _trunk = "model"

    def leaf_modules(self) -> list[type[nn.Module]]:
        """None: what a module reads of its weights is its own."""
        return []
