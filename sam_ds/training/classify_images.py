"""What the trainer needs for ``ClassifyImages``: its data, its evaluation, its baseline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.config.errors import UserError
from sam_ds.config.schema import Recipe
from sam_ds.data.imagenet import PictureIndex, need_classes
from sam_ds.data.picture_loader import PictureTrainLoader
from sam_ds.engine import distributed
from sam_ds.engine.preemption import stop
from sam_ds.evaluation import classes
from sam_ds.evaluation.classes import ClassSums, Gallery, MostFrequent
from sam_ds.modeling.classifier import Classifier
from sam_ds.modeling.presets import vit_config
from sam_ds.tasks.classify_images import ClassifyImages
from sam_ds.training.picture_kit import PictureKit


class ClassifyImagesKit(PictureKit):
    """Classification of pictures in a folder or a tar a class."""

    def score(self, recipe: Recipe, results: dict[str, float]) -> float:
        """What the best checkpoint is chosen by: the part of the pictures whose class is named first."""
        return results["top1"]

    def check(self, recipe: Recipe) -> None:
        vit_config(recipe.model.preset)

    def build(self, recipe: Recipe) -> ClassifyImages:
        return ClassifyImages(recipe)

    def open_data(self, data: str, val: str | None, tell: Callable[[str], None] | None = None) -> None:
        super().open_data(data, val, tell)
        if self.classes:
            train, held_out = self.splits
            self._splits = _counted_by(self.classes, train), _counted_by(self.classes, held_out)
        need_classes(*self.splits)
        self.classes = self.splits[0].classes

    def train_loader(self, recipe: Recipe, config: DeepSpeedConfig, quarantine: Path | None) -> PictureTrainLoader:
        """Raises UserError if the pictures have more or fewer classes than the model, or none to be mixed with."""
        self._check_count(recipe)
        if (recipe.classify.mixup or recipe.classify.cutmix) and config.micro_batch < 2:
            raise UserError(
                f"{config.source}: train_micro_batch_size_per_gpu={config.micro_batch} leaves no other picture to mix "
                "with: make it 2 at least, or set classify.mixup=0 and classify.cutmix=0"
            )
        return super().train_loader(recipe, config, quarantine)

    def baselines(self, recipe: Recipe, device: torch.device) -> dict[str, dict[str, float]]:
        """The class that is most frequent among the pictures to train on."""
        self._check_count(recipe)
        counts = torch.bincount(torch.from_numpy(self.splits[0].labels()), minlength=recipe.classify.num_classes)
        return {"most frequent": self._measure(MostFrequent(counts), recipe, device, None)}

    def evaluate(
        self, model: Classifier, recipe: Recipe, device: torch.device, pictures: Path
    ) -> tuple[dict[str, float], list[Path]]:
        self._check_count(recipe)
        gallery = Gallery(pictures, recipe.eval.pictures if distributed.is_main() else 0, self.classes)
        return self._measure(model, recipe, device, gallery), gallery.paths

    def _measure(
        self, predictor: classes.Predictor, recipe: Recipe, device: torch.device, gallery: Gallery | None
    ) -> dict[str, float]:
        sums = classes.evaluate(predictor, self.eval_batches(recipe), device, gallery)
        stop.check()
        total = distributed.all_reduce_sum(sums.to_tensor().to(device))
        return ClassSums.from_tensor(total).metrics()

    def _check_count(self, recipe: Recipe) -> None:
        count, own = len(self.classes), recipe.classify.num_classes
        if count != own:
            raise UserError(
                f"{self.splits[0].root} has {count} classes, and classify.num_classes={own}: give the pictures that "
                f"the recipe is for, or train with --set classify.num_classes={count}"
            )

    def table(self, results: dict[str, dict[str, float]]) -> str:
        return classes.class_table(results)


def _counted_by(classes: list[str], pictures: PictureIndex) -> PictureIndex:
    """Pictures, of some of a model's classes, with labels as the model counts."""
    strange = sorted(set(pictures.found) - set(classes))
    if strange:
        raise UserError(
            f"{pictures.root} has {len(strange)} classes that the model was not trained on, such as {strange[0]}: "
            "leave their pictures out"
        )
    return pictures.known_as(classes)
