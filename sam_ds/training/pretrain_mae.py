"""What the trainer needs for ``PretrainMae``: its data, its evaluation, its baseline."""

from __future__ import annotations

from pathlib import Path

import torch

from sam_ds.config.schema import Recipe
from sam_ds.engine import distributed
from sam_ds.engine.preemption import stop
from sam_ds.evaluation import reconstruction
from sam_ds.evaluation.reconstruction import FlatPatches, Gallery, Painter, ReconstructionSums
from sam_ds.modeling.mae import Mae, Patches
from sam_ds.modeling.presets import vit_config
from sam_ds.tasks.pretrain_mae import PretrainMae
from sam_ds.training.picture_kit import PictureKit


class PretrainMaeKit(PictureKit):
    """Masked autoencoding on pictures of any kind. Their classes are not looked at."""

    def score(self, recipe: Recipe, results: dict[str, float]) -> float:
        """What the best checkpoint is chosen by: the loss, turned round."""
        return -results["loss"]

    def check(self, recipe: Recipe) -> None:
        _patches(recipe)

    def build(self, recipe: Recipe) -> PretrainMae:
        return PretrainMae(recipe)

    def baselines(self, recipe: Recipe, device: torch.device) -> dict[str, dict[str, float]]:
        """Patches of one colour each."""
        flat = FlatPatches(_patches(recipe), recipe.mae.normalize_pixels)
        return {"flat patches": self._measure(flat, recipe, device, None)}

    def evaluate(
        self, model: Mae, recipe: Recipe, device: torch.device, pictures: Path
    ) -> tuple[dict[str, float], list[Path]]:
        gallery = Gallery(pictures, recipe.eval.pictures if distributed.is_main() else 0)
        return self._measure(model, recipe, device, gallery), gallery.paths

    def _measure(
        self, painter: Painter, recipe: Recipe, device: torch.device, gallery: Gallery | None
    ) -> dict[str, float]:
        batches = self.eval_batches(recipe)
        sums = reconstruction.evaluate(painter, batches, _patches(recipe), recipe.seed, device, gallery)
        stop.check()
        total = distributed.all_reduce_sum(sums.to_tensor().to(device))
        return ReconstructionSums.from_tensor(total).metrics()

    def table(self, results: dict[str, dict[str, float]]) -> str:
        return reconstruction.reconstruction_table(results)


def _patches(recipe: Recipe) -> Patches:
    """Raises UserError for an unknown preset, a ratio that masks everything, or a crop that does not fit."""
    return Patches(vit_config(recipe.model.preset), recipe.mae, recipe.data.crop_size)
