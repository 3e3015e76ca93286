"""Detection: a batch of pictures with boxes becomes a loss through a library's matching of boxes found and true."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sam_ds.config.schema import Recipe
from sam_ds.losses.detection import detection_loss
from sam_ds.modeling.detector import build_detector
from sam_ds.modeling.sam.sam import normalize
from sam_ds.tasks.encoder_tasks import TrunkTask
from sam_ds.types import BoxBatch


@dataclass(frozen=True)
class DetectInputs:
    """A batch on the device, ready for ``forward``."""

    images: Tensor  # float32 [B, 3, S, S]  normalised, zero where padded
    targets: list[dict[str, Tensor]]  # of every picture class_labels int64 [O] and boxes float32 [O, 4]: centre x and
    #                                   y, width and height, as parts of the input's side; O may be 0
    count: Tensor  # how many boxes there are, a float32 scalar


class DetectObjects(TrunkTask):
    """A detector on SAM's trunk. The trainer knows it as it knows ``SegmentImages``."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe, build_detector(recipe.model, recipe.detect))

    @torch.no_grad()
    def prepare(self, batch: BoxBatch, step: int) -> DetectInputs:
        """Normalise the pictures and bring the boxes to the form of the loss, where the batch is."""
        corners = batch.boxes / batch.images.shape[-1]
        low, high = corners[:, :2], corners[:, 2:]
        boxes = torch.cat([(low + high) / 2, high - low], dim=1)
        counts = batch.counts.tolist()
        targets = [
            {"class_labels": labels, "boxes": own}
            for labels, own in zip(batch.labels.split(counts), boxes.split(counts), strict=True)
        ]
        count = torch.full((), float(len(boxes)), device=boxes.device)
        return DetectInputs(normalize(batch.images, batch.valid_sizes), targets, count)

    def forward(self, inputs: DetectInputs, normalizer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one micro-batch, summed over its boxes and divided by ``normalizer``.

        Args:
            normalizer: float scalar, the mean number of boxes a micro-batch over all ranks and all micro-batches of
                the step.

        Returns:
            the loss, and its parts for the log.
        """
        found = self.model(inputs.images)
        parts = detection_loss(found.logits, found.boxes, inputs.targets)
        total = torch.stack(list(parts.values())).sum() / normalizer
        return total, {f"loss/{name}": value.detach() / normalizer for name, value in parts.items()}
