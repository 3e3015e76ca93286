"""What the trainer needs for ``PretrainMae``: its data, its evaluation, its baseline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.config.schema import Recipe
from sam_ds.data.imagenet import PictureIndex, open_picture_splits
from sam_ds.data.picture_loader import PictureEvalLoader, PictureTrainLoader
from sam_ds.engine import distributed
from sam_ds.engine.preemption import stop
from sam_ds.engine.watchdog import watchdog
from sam_ds.evaluation import reconstruction
from sam_ds.evaluation.reconstruction import FlatPatches, Gallery, Painter, ReconstructionSums
from sam_ds.modeling.mae import Mae, Patches
from sam_ds.modeling.presets import vit_config
from sam_ds.tasks.pretrain_mae import PretrainMae
from sam_ds.types import PictureBatch


class PretrainMaeKit:
    """Masked autoencoding on pictures of any kind."""

    def __init__(self) -> None:
        self._splits: tuple[PictureIndex, PictureIndex] | None = None

    @property
    def splits(self) -> tuple[PictureIndex, PictureIndex]:
        assert self._splits is not None, "open_data comes first"
        return self._splits

    def score(self, recipe: Recipe, results: dict[str, float]) -> float:
        """What the best checkpoint is chosen by: the loss, turned round."""
        return -results["loss"]

    def check(self, recipe: Recipe) -> None:
        _patches(recipe)

    def build(self, recipe: Recipe) -> PretrainMae:
        return PretrainMae(recipe)

    def open_data(self, data: str, val: str | None, tell: Callable[[str], None] | None = None) -> None:
        """``val`` names the pictures to evaluate on; without it, ``data`` is split. Classes are not looked at."""
        self._splits = open_picture_splits(data, tell, val)

    def fingerprint(self) -> str:
        return "-".join(split.fingerprint() for split in self.splits)

    def train_loader(self, recipe: Recipe, config: DeepSpeedConfig, quarantine: Path | None) -> PictureTrainLoader:
        return PictureTrainLoader(
            self.splits[0],
            recipe,
            _side(recipe),
            config.micro_batch,
            config.accumulation,
            distributed.rank(),
            distributed.world_size(),
            quarantine,
        )

    def rounds(self, recipe: Recipe, step: int) -> int:
        return 1

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
        rank, world = distributed.rank(), distributed.world_size()
        loader = PictureEvalLoader(self.splits[1], recipe.data, _side(recipe), recipe.eval, rank, world)
        batches = watchdog.marked(stop.until_seen(loader), "a batch of the evaluation")
        sums = reconstruction.evaluate(painter, batches, _patches(recipe), recipe.seed, device, gallery)
        stop.check()
        total = distributed.all_reduce_sum(sums.to_tensor().to(device))
        return ReconstructionSums.from_tensor(total).metrics()

    def table(self, results: dict[str, dict[str, float]]) -> str:
        return reconstruction.reconstruction_table(results)

    def example(self, recipe: Recipe, place: int) -> PictureBatch:
        """A picture of noise."""
        return _batch(recipe, torch.tensor([place]))

    def full_batch(self, recipe: Recipe, micro_batch: int) -> PictureBatch:
        """All batches are as large as this."""
        return _batch(recipe, torch.arange(micro_batch))


def _patches(recipe: Recipe) -> Patches:
    """Raises UserError for an unknown preset, or a ratio that masks everything."""
    return Patches(vit_config(recipe.model.preset), recipe.mae)


def _side(recipe: Recipe) -> int:
    """Pixels along the side of the model's input."""
    return vit_config(recipe.model.preset).image_size


def _batch(recipe: Recipe, places: torch.Tensor) -> PictureBatch:
    """Pictures of noise at these places of the stream."""
    side, count = _side(recipe), len(places)
    generator = torch.Generator().manual_seed(int(places[0]))
    return PictureBatch(
        images=torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator),
        labels=torch.full((count,), -1),
        sample_ids=places,
        positions=places,
    )
