"""Masked autoencoding: a batch of pictures becomes a loss through the patches that are hidden and painted again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sam_ds.config.schema import Recipe
from sam_ds.modeling.mae import Patches
from sam_ds.modeling.plain_vit import normalize
from sam_ds.modeling.presets import build_mae
from sam_ds.prompts.draws import object_keys, uniform
from sam_ds.tasks.encoder_tasks import PictureInputs, PlainVitTask
from sam_ds.types import PictureBatch

_ORDER, _PLACE = 2000, 2001  # salts of the draws, apart from those of prompts


@dataclass(frozen=True)
class MaeInputs(PictureInputs):
    """A batch on the device, ready for ``forward``."""

    order: Tensor  # int64 [B, N]  the patches, the seen ones first
    cells: Tensor  # int64 [B, N]  the cells of the model's grid that the patches lie in


class PretrainMae(PlainVitTask):
    """A masked autoencoder, trained as its release trains it. The trainer knows it as it knows ``SegmentImages``."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe, build_mae(recipe.model, recipe.mae, recipe.data.crop_size))

    @property
    def encoder(self) -> nn.Module:
        """The whole model: names are those of the release, which keeps no encoder apart, and nothing is ever frozen."""
        return self.model

    def checkpointed(self) -> dict[str, list[nn.Module]]:
        """Modules whose activations may be recomputed: all run once a step."""
        return {"once": [*self.blocks, *self.model.decoder_blocks], "reused": []}

    @torch.no_grad()
    def prepare(self, batch: PictureBatch, step: int) -> MaeInputs:
        """As ``make_inputs``, where the batch is. The stream's positions say the step."""
        return make_inputs(batch, self.model.patches, self.recipe.seed)

    def forward(self, inputs: MaeInputs, normalizer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one micro-batch, summed over its pictures and divided by ``normalizer``.

        Args:
            normalizer: float scalar, the mean number of pictures a micro-batch.

        Returns:
            the loss, and nothing more for the log.
        """
        predictions = self.model(inputs.images, inputs.order, inputs.cells)
        return picture_losses(self.model.patches, inputs, predictions).sum() / normalizer, {}


def make_inputs(batch: PictureBatch, patches: Patches, seed: int) -> MaeInputs:
    """Normalise the pictures, and draw what is masked and where in the model's input each lies."""
    places = uniform(object_keys(seed, batch.positions, torch.zeros_like(batch.positions)), _PLACE, 2)
    return MaeInputs(normalize(batch.images), patch_order(seed, batch.positions, patches.num), patches.cells(places))


def picture_losses(patches: Patches, inputs: MaeInputs, predictions: Tensor) -> Tensor:
    """float32 [B]: the mean squared error of each picture's masked patches.

    Every picture has as many, so that the mean over pictures is the release's mean over masked patches.
    """
    return (predictions.float() - patches.targets(inputs.images, inputs.order)).square().mean((1, 2))


def patch_order(seed: int, positions: Tensor, num_patches: int) -> Tensor:
    """int64 [B, N]: the patches of the pictures at int64 [B] places of the stream, each in an order of its own.

    Drawn from (seed, place): a picture has the same order on any rank of any number of ranks.
    """
    keys = object_keys(seed, positions, torch.zeros_like(positions))
    return uniform(keys, _ORDER, num_patches).argsort(dim=1, stable=True)  # stable: draws of 24 bits may be equal
