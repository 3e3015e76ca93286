"""How well every pixel's class is told: intersection over union, from one matrix of counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sam_ds.config.errors import UserError
from sam_ds.evaluation import tables
from sam_ds.evaluation.source import source_view
from sam_ds.modeling.sam.sam import normalize
from sam_ds.types import UNLABELLED, LabelBatch

_CLASSES_AT_ONCE = 16  # bounds the memory of logits at a picture's own size

Labels = npt.NDArray[np.uint8]


class Watcher(Protocol):
    """Sees what was found, to draw it."""

    def see(self, batch: LabelBatch, picture: int, truth: Labels, found: Labels) -> None:
        """One picture of a batch, with its true and its found classes, both [H, W] of its own size."""
        ...


@dataclass(frozen=True)
class PixelSums:
    """Counts of pixels by their true and their found class. Add those of all ranks before ``metrics``."""

    counts: Tensor  # float64 [C, C]: row, the true class; column, the found one

    @classmethod
    def zero(cls, num_classes: int) -> PixelSums:
        return cls(torch.zeros(num_classes, num_classes, dtype=torch.float64))

    def plus(self, truth: Labels, found: Labels) -> PixelSums:
        """With the pixels of one more picture, [H, W] both; those without a true class do not count."""
        size = len(self.counts)
        known = truth != UNLABELLED
        pairs = truth[known].astype(np.int64) * size + found[known]
        counts = np.bincount(pairs, minlength=size * size).reshape(size, size)
        return PixelSums(self.counts + torch.from_numpy(counts))

    def metrics(self) -> dict[str, float]:
        """Mean IoU and accuracy over the classes that there are or that were found, and the accuracy of pixels.

        Raises:
            UserError: no pixel has a class.
        """
        true, found, right = self.counts.sum(1), self.counts.sum(0), self.counts.diagonal()
        if not true.any():
            raise UserError("evaluation: no pixel has a class; check the label maps of the pictures to evaluate on")
        union = true + found - right
        return {
            "miou": float((right / union)[union > 0].mean()),
            "accuracy": float((right / true)[true > 0].mean()),
            "pixel_accuracy": float(right.sum() / true.sum()),
            "pixels": float(true.sum()),
        }


class OneClass(nn.Module):
    """What a segmenter must beat: the same class everywhere."""

    def __init__(self, num_classes: int, label: int) -> None:
        super().__init__()
        self.num_classes, self.label = num_classes, label

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), self.num_classes, 1, 1, device=images.device)
        logits[:, self.label] = 1.0
        return logits


@torch.no_grad()
def evaluate(
    model: Any,
    batches: Iterable[LabelBatch],
    truth_of: Callable[[int], Labels],
    num_classes: int,
    device: torch.device,
    watcher: Watcher | None = None,
) -> PixelSums:
    """Compare every pixel of the pictures, at their own size.

    Args:
        model: normalised pictures [B, 3, S, S] to logits [B, C, h, h].
        truth_of: the label map of a sample.
    """
    sums = PixelSums.zero(num_classes)
    for batch in batches:
        side = batch.images.shape[-1]
        logits = model(normalize(batch.images.to(device), batch.valid_sizes.to(device)))
        for picture, sample in enumerate(batch.sample_ids.tolist()):
            if sample < 0:
                continue
            truth = truth_of(sample)
            height, width = batch.valid_sizes[picture].tolist()
            found = classes_at(logits[picture], side, (height, width), (truth.shape[0], truth.shape[1]))
            sums = sums.plus(truth, found)
            if watcher:
                watcher.see(batch, picture, truth, found)
    return sums


def classes_at(logits: Tensor, side: int, valid: tuple[int, int], size: tuple[int, int]) -> Labels:
    """uint8 [H, W] of a picture of ``size``: the class with the highest logit, resized as masks of SAM are.

    Args:
        logits: [C, h, h].
        side: of the model's input.
        valid: height and width of the part of it that shows picture.
    """
    view = source_view((logits.shape[1], logits.shape[2]), side, valid, size)
    rows, columns = view.rows.to(logits.device), view.columns.T.to(logits.device)
    best = torch.full(size, -torch.inf, device=logits.device)
    label = torch.zeros(size, dtype=torch.uint8, device=logits.device)
    for first in range(0, len(logits), _CLASSES_AT_ONCE):
        some = logits[first : first + _CLASSES_AT_ONCE].float()
        highest, place = (rows @ some @ columns).max(0)
        label = torch.where(highest > best, (place + first).to(torch.uint8), label)
        best = best.maximum(highest)
    found: Labels = label.cpu().numpy()
    return found


_SHOWN = {"miou": "mIoU", "accuracy": "accuracy, mean over classes", "pixel_accuracy": "accuracy of pixels"}


def class_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics side by side, in percent."""
    rows = {label: [f"{100 * values[name]:.1f}" for values in columns.values()] for name, label in _SHOWN.items()}
    return tables.table(list(columns), rows)
