"""Classification: a batch of pictures, each with a class, becomes a loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_ds.config.schema import Recipe
from sam_ds.modeling.plain_vit import normalize
from sam_ds.modeling.presets import build_classifier
from sam_ds.prompts.draws import object_keys
from sam_ds.tasks.encoder_tasks import PictureInputs, PlainVitTask
from sam_ds.tasks.mixing import mix
from sam_ds.types import PictureBatch


@dataclass(frozen=True)
class ClassifyInputs(PictureInputs):
    """A batch on the device, its pictures mixed, ready for ``forward``."""

    labels: Tensor  # int64 [B]    the picture's own class
    others: Tensor  # int64 [B]    that of the picture it was mixed with
    own: Tensor  # float32 [B]  how much of the picture is its own


class ClassifyImages(PlainVitTask):
    """A plain ViT that learns classes. The trainer knows it as it knows ``SegmentImages``."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe, build_classifier(recipe.model, recipe.classify))

    @property
    def encoder(self) -> nn.Module:
        """What a frozen-encoder phase freezes: all but the head."""
        return self.model.trunk()

    @torch.no_grad()
    def prepare(self, batch: PictureBatch, step: int) -> ClassifyInputs:
        """Normalise the pictures and mix them, where the batch is. The stream's positions say the step."""
        keys = object_keys(self.recipe.seed, batch.positions, torch.zeros_like(batch.positions))
        images, own = mix(normalize(batch.images), keys, self.recipe.classify)
        return ClassifyInputs(images, batch.labels, batch.labels.roll(1, 0), own)

    def forward(self, inputs: ClassifyInputs, normalizer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one micro-batch, summed over its pictures and divided by ``normalizer``.

        A mixed picture is of both its classes, each as much as there is of it: the cross entropy with such a target is
        the mean, so weighted, of those with either class.

        Args:
            normalizer: float scalar, the mean number of pictures a micro-batch.

        Returns:
            the loss, and for the log how many of the pictures, likewise divided, are taken for what they mostly are.
        """
        logits = self.model(inputs.images).float()
        own, others = (self._losses(logits, labels) for labels in (inputs.labels, inputs.others))
        losses = inputs.own * own + (1 - inputs.own) * others
        mostly = torch.where(inputs.own >= 0.5, inputs.labels, inputs.others)
        right = (logits.detach().argmax(1) == mostly).sum()
        return losses.sum() / normalizer, {"accuracy": right / normalizer}

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """float32 [B]."""
        smoothing = self.recipe.classify.label_smoothing
        return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
