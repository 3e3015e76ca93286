"""Semantic segmentation: a batch of pictures becomes the cross entropy of every pixel's class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sam_ds.config.schema import Recipe
from sam_ds.modeling.sam.sam import normalize
from sam_ds.modeling.segmenter import build_segmenter
from sam_ds.tasks.encoder_tasks import TrunkTask
from sam_ds.types import UNLABELLED, LabelBatch


@dataclass(frozen=True)
class LabelInputs:
    """A batch on the device, ready for ``forward``."""

    images: Tensor  # float32 [B, 3, S, S]  normalised, zero where padded
    labels: Tensor  # int64 [B, S, S]       classes, UNLABELLED where there is none

    @property
    def count(self) -> Tensor:
        """How many pixels have a class, a float32 scalar."""
        return (self.labels != UNLABELLED).sum().float()


class SegmentClasses(TrunkTask):
    """A semantic segmenter on SAM's trunk. The trainer knows it as it knows ``SegmentImages``."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe, build_segmenter(recipe.model, recipe.classes))

    @torch.no_grad()
    def prepare(self, batch: LabelBatch, step: int) -> LabelInputs:
        """Normalise the pictures, where the batch is."""
        return LabelInputs(normalize(batch.images, batch.valid_sizes), batch.labels.long())

    def forward(self, inputs: LabelInputs, normalizer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one micro-batch, summed over its pixels with a class and divided by ``normalizer``.

        Args:
            normalizer: float scalar, the mean number of such pixels a micro-batch over all ranks and all micro-batches
                of the step.

        Returns:
            the loss, and for the log the part of the pixels whose class is right.
        """
        logits = self.model(inputs.images)
        logits = F.interpolate(logits, size=inputs.labels.shape[1:], mode="bilinear")  # [B, C, S, S]
        loss = F.cross_entropy(logits, inputs.labels, ignore_index=UNLABELLED, reduction="sum") / normalizer
        right = (logits.detach().argmax(1) == inputs.labels).sum()
        return loss, {"accuracy": right / normalizer}
