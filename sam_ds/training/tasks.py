"""The tasks that can be trained: for each name of ``recipe.task``, how to build it, feed it and measure it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.config.errors import UserError, nearest
from sam_ds.config.schema import Recipe
from sam_ds.training.classify_images import ClassifyImagesKit
from sam_ds.training.detect_objects import DetectObjectsKit
from sam_ds.training.pretrain_mae import PretrainMaeKit
from sam_ds.training.segment_classes import SegmentClassesKit
from sam_ds.training.segment_images import SegmentImagesKit


class Loader(Protocol):
    """An endless stream of batches."""

    def steps(self, start: int, left_out: int = 0) -> Iterator[list[Any]]:
        """A step's micro-batches, from step ``start`` on, with the stream that many steps ahead."""
        ...


class Kit(Protocol):
    """What the trainer needs for one task."""

    # What the classes that labels count are called, in their order, where it is the pictures that say it: once
    # ``open_data`` was called those to train on, unless a trained model's were set before.
    classes: list[str]

    def score(self, recipe: Recipe, results: dict[str, float]) -> float:
        """The number, higher is better, that the best checkpoint is chosen by."""
        ...

    def check(self, recipe: Recipe) -> None:
        """What can be told of a recipe without building its model. Raises UserError if it cannot be built."""
        ...

    def build(self, recipe: Recipe) -> Any:
        """The task."""
        ...

    def open_data(self, data: str, val: str | None, tell: Callable[[str], None] | None = None) -> None:
        """Open the pictures to train on and to evaluate on; ``tell`` hears how far that is.

        Raises UserError if there are none.
        """
        ...

    def fingerprint(self) -> str:
        """Equal for the same pictures to train and to evaluate on, in the same order."""
        ...

    def train_loader(self, recipe: Recipe, config: DeepSpeedConfig, quarantine: Path | None) -> Loader:
        """This rank's part of the stream."""
        ...

    def rounds(self, recipe: Recipe, step: int) -> int:
        """How often an object is decoded in a step."""
        ...

    def baselines(self, recipe: Recipe, device: torch.device) -> dict[str, dict[str, float]]:
        """Metrics of what a model must beat, by title. Collective."""
        ...

    def evaluate(
        self, model: Any, recipe: Recipe, device: torch.device, pictures: Path
    ) -> tuple[dict[str, float], list[Path]]:
        """Metrics of a model over all ranks, and the pictures that this rank drew. Collective."""
        ...

    def table(self, results: dict[str, dict[str, float]]) -> str:
        """Metrics side by side, for people."""
        ...

    def example(self, recipe: Recipe, place: int) -> Any:
        """A batch of one drawn picture, the same for the same ``place``: enough to compare gradients on."""
        ...

    def full_batch(self, recipe: Recipe, micro_batch: int) -> Any:
        """A batch of so many drawn pictures that is as large as the recipe's batches get."""
        ...


TASKS: dict[str, type[Kit]] = {
    "segment_images": SegmentImagesKit,
    "pretrain_mae": PretrainMaeKit,
    "detect_objects": DetectObjectsKit,
    "segment_classes": SegmentClassesKit,
    "classify_images": ClassifyImagesKit,
}


def kit(name: str) -> Kit:
    """Raises UserError for a task that does not exist."""
    if name not in TASKS:
        raise UserError(f"task={name!r} is not known; {nearest(name, TASKS)}")
    return TASKS[name]()
