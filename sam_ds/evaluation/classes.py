"""How often a classifier is right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sam_ds.config.errors import UserError
from sam_ds.evaluation.pictures import enlarged, save_row, titled
from sam_ds.evaluation.tables import table
from sam_ds.modeling.plain_vit import normalize
from sam_ds.types import PictureBatch

_NAMED = 5  # classes that a classifier may name for "top5"

# From normalised pictures [B, 3, S, S] to logits [B, C].
Predictor = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ClassSums:
    """Sums over pictures. Add those of all ranks (``to_tensor``, all-reduce, ``from_tensor``) before ``metrics``."""

    top1: float = 0.0
    top5: float = 0.0
    loss: float = 0.0
    count: float = 0.0  # pictures

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> ClassSums:
        """Of pictures with float32 [B, C] logits and int64 [B] classes."""
        named = logits.topk(min(_NAMED, logits.shape[1]), dim=1).indices  # [B, 5]
        right = named == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return cls(float(right[:, 0].sum()), float(right.sum()), float(loss), float(len(labels)))

    def to_tensor(self) -> Tensor:
        """float64 [4]."""
        return torch.tensor([self.top1, self.top5, self.loss, self.count], dtype=torch.float64)

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> ClassSums:
        return cls(*tensor.cpu().double().tolist())

    def metrics(self) -> dict[str, float]:
        """Means over pictures: "top1" and "top5", the parts that are right, and the cross entropy "loss".

        Raises:
            UserError: there was no picture.
        """
        if not self.count:
            raise UserError("evaluation: no picture could be read; check the pictures to evaluate on")
        means = {name: getattr(self, name) / self.count for name in ("top1", "top5", "loss")}
        return means | {"pictures": self.count}


class MostFrequent:
    """What a classifier must beat: every picture is of the class that most pictures to train on are of."""

    def __init__(self, counts: Tensor) -> None:
        """counts: [C], how many pictures each class has."""
        self._logits = (counts.double() / counts.sum()).clamp(min=1e-12).log().float()

    def __call__(self, images: Tensor) -> Tensor:
        return self._logits.to(images.device).expand(len(images), -1)


@torch.no_grad()
def evaluate(
    predictor: Predictor, batches: Iterable[PictureBatch], device: torch.device, gallery: Gallery | None = None
) -> ClassSums:
    """Look at every picture once. Those without a class fill up a rank's last batches, or could not be read."""
    sums = torch.zeros(4, dtype=torch.float64)
    for batch in batches:
        there = batch.labels >= 0
        logits = predictor(normalize(batch.images.to(device))).float().cpu()
        sums += ClassSums.of(logits[there], batch.labels[there]).to_tensor()
        if gallery is not None:
            gallery.see(batch, logits)
    return ClassSums.from_tensor(sums)


class Gallery:
    """Draws the first pictures, each below its class and the one that it is taken for."""

    def __init__(self, folder: Path, limit: int, classes: Sequence[str]) -> None:
        """Pictures go to ``folder``, at most ``limit`` of them."""
        self.folder, self.limit, self.classes = folder, limit, classes
        self.paths: list[Path] = []

    def see(self, batch: PictureBatch, logits: Tensor) -> None:
        """Draw what there is room for, and keep the files' paths. logits: float32 [B, C], on the host."""
        chances, named = logits.softmax(1).max(1)  # [B] each
        room = max(0, self.limit - len(self.paths))
        for place in (batch.labels >= 0).nonzero()[:room, 0].tolist():
            own, taken_for = (self.classes[int(labels[place])] for labels in (batch.labels, named))
            title = f"{own}: {'right' if own == taken_for else taken_for}, {chances[place]:.0%}"
            panel = titled(enlarged(batch.images[place].permute(1, 2, 0).numpy()), title)
            self.paths += save_row([panel], self.folder / f"{int(batch.sample_ids[place]):08d}.png")


def class_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics of several classifiers side by side.

    Args:
        columns: a title ("untrained", "step 600") and what ``ClassSums.metrics`` gave.
    """
    rows = {"top-1, %": [f"{100 * values['top1']:.1f}" for values in columns.values()]}
    rows["top-5, %"] = [f"{100 * values['top5']:.1f}" for values in columns.values()]
    rows["cross entropy"] = [f"{values['loss']:.4f}" for values in columns.values()]
    return table(list(columns), rows)
