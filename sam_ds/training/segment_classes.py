"""What the trainer needs for ``SegmentClasses``: its data, its evaluation, its baseline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.config.errors import UserError
from sam_ds.config.schema import Recipe
from sam_ds.data.annotated import eval_stream, train_stream
from sam_ds.data.class_maps import ClassMapSet, LabelMaker, open_class_map_splits
from sam_ds.data.files import BadSampleError
from sam_ds.data.stream import TrainStream
from sam_ds.engine import distributed
from sam_ds.engine.preemption import stop
from sam_ds.engine.watchdog import watchdog
from sam_ds.evaluation import class_maps
from sam_ds.evaluation.class_maps import OneClass, PixelSums
from sam_ds.evaluation.galleries import ClassGallery
from sam_ds.modeling.presets import sam_config
from sam_ds.tasks.segment_classes import SegmentClasses
from sam_ds.training.splits import SplitsKit, own_share
from sam_ds.types import UNLABELLED, LabelBatch

_COUNTED = 200  # label maps that the commonest class is looked for in


class SegmentClassesKit(SplitsKit[ClassMapSet]):
    """Semantic segmentation on ADE20K's format."""

    def score(self, recipe: Recipe, results: dict[str, float]) -> float:
        """What the best checkpoint is chosen by: mIoU."""
        return results["miou"]

    def check(self, recipe: Recipe) -> None:
        sam_config(recipe.model.preset)

    def build(self, recipe: Recipe) -> SegmentClasses:
        return SegmentClasses(recipe)

    def open_data(self, data: str, val: str | None, tell: Callable[[str], None] | None = None) -> None:
        """``data`` is laid out as ADE20K is; ``val``, laid out alike, brings another set to evaluate on."""
        self._splits = open_class_map_splits(data, val, tell)

    def train_loader(self, recipe: Recipe, config: DeepSpeedConfig, quarantine: Path | None) -> TrainStream[LabelBatch]:
        maker = LabelMaker(self.splits[0], recipe.classes.num_classes, recipe.data, _side(recipe), recipe.seed)
        return train_stream(maker, recipe, own_share(config), quarantine)

    def baselines(self, recipe: Recipe, device: torch.device) -> dict[str, dict[str, float]]:
        """The class that most pixels of the training pictures have, everywhere."""
        commonest = distributed.on_main(lambda: self._commonest(recipe), watchdog.meet)
        model = OneClass(recipe.classes.num_classes, commonest)
        return {"commonest class": self._measure(model, recipe, device, None)}

    def _commonest(self, recipe: Recipe) -> int:
        maker = LabelMaker(self.splits[0], recipe.classes.num_classes, recipe.data, _side(recipe))
        counts, faults = np.zeros(UNLABELLED + 1, np.int64), list[str]()
        for sample in range(min(_COUNTED, len(self.splits[0]))):
            labels, fault = _labels(maker, sample)
            counts += np.bincount(labels, minlength=len(counts))
            faults += [fault] if fault else []
        if not counts[:UNLABELLED].any():
            why = f"; {len(faults)} of them are bad, the first: {faults[0]}" if faults else ""
            raise UserError(
                f"{self.splits[0].root}: no pixel of the first {_COUNTED} training pictures has a class{why}"
            )
        return int(counts[:UNLABELLED].argmax())

    def evaluate(
        self, model: Any, recipe: Recipe, device: torch.device, pictures: Path
    ) -> tuple[dict[str, float], list[Path]]:
        gallery = ClassGallery(pictures, recipe.eval.pictures if distributed.is_main() else 0)
        return self._measure(model, recipe, device, gallery), gallery.paths

    def _measure(
        self, model: Any, recipe: Recipe, device: torch.device, gallery: ClassGallery | None
    ) -> dict[str, float]:
        maker = LabelMaker(self.splits[1], recipe.classes.num_classes, recipe.data, _side(recipe))
        loader = eval_stream(maker, recipe.eval, distributed.rank(), distributed.world_size())
        batches = watchdog.marked(stop.until_seen(loader), "a batch of the evaluation")
        sums = class_maps.evaluate(model, batches, maker.labels, recipe.classes.num_classes, device, gallery)
        stop.check()
        return PixelSums(distributed.all_reduce_sum(sums.counts.to(device)).cpu()).metrics()

    def table(self, results: dict[str, dict[str, float]]) -> str:
        return class_maps.class_table(results)

    def example(self, recipe: Recipe, place: int) -> LabelBatch:
        """A picture of noise, half of it with classes."""
        batch = self.full_batch(recipe, 1)
        generator = torch.Generator().manual_seed(place)
        images = torch.randint(0, 256, batch.images.shape, dtype=torch.uint8, generator=generator)
        labels = batch.labels.clone()
        labels[:, :, _side(recipe) // 2 :] = UNLABELLED
        places = torch.tensor([place])
        return LabelBatch(images, batch.valid_sizes, labels, places, places)

    def full_batch(self, recipe: Recipe, micro_batch: int) -> LabelBatch:
        """All batches are as large as this."""
        side, places = _side(recipe), torch.arange(micro_batch)
        rows = torch.arange(side, dtype=torch.uint8) % recipe.classes.num_classes
        return LabelBatch(
            images=torch.zeros(micro_batch, 3, side, side, dtype=torch.uint8),
            valid_sizes=torch.full((micro_batch, 2), side, dtype=torch.int32),
            labels=rows[:, None].expand(micro_batch, side, side).clone(),
            sample_ids=places,
            positions=places,
        )


def _side(recipe: Recipe) -> int:
    """Pixels along the side of the model's input."""
    return sam_config(recipe.model.preset).image_size


def _labels(maker: LabelMaker, sample: int) -> tuple[np.ndarray, str]:
    """Of all pixels of a picture, in one row; of a bad one none, and why: the quarantine will name it."""
    try:
        return maker.labels(sample).ravel(), ""
    except BadSampleError as error:
        return np.zeros(0, np.uint8), str(error)
