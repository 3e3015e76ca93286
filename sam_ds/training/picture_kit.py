"""What the kits of tasks on whole pictures have in common: their data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.config.schema import Recipe
from sam_ds.data.imagenet import PictureIndex, open_picture_splits
from sam_ds.data.picture_loader import PictureEvalLoader, PictureTrainLoader
from sam_ds.engine import distributed
from sam_ds.engine.preemption import stop
from sam_ds.engine.watchdog import watchdog
from sam_ds.modeling.presets import vit_config
from sam_ds.training.splits import SplitsKit, own_share
from sam_ds.types import PictureBatch


class PictureKit(SplitsKit[PictureIndex]):
    """Whole pictures for a plain ViT."""

    def open_data(self, data: str, val: str | None, tell: Callable[[str], None] | None = None) -> None:
        """``val`` names the pictures to evaluate on; without it, ``data`` is split."""
        self._splits = open_picture_splits(data, tell, val)

    def train_loader(self, recipe: Recipe, config: DeepSpeedConfig, quarantine: Path | None) -> PictureTrainLoader:
        return PictureTrainLoader(self.splits[0], recipe, _side(recipe), own_share(config), quarantine)

    def eval_batches(self, recipe: Recipe) -> Iterator[PictureBatch]:
        """This rank's part of the pictures to evaluate on, until a rank is asked to stop."""
        rank, world = distributed.rank(), distributed.world_size()
        loader = PictureEvalLoader(self.splits[1], recipe.data, _side(recipe), recipe.eval, rank, world)
        return watchdog.marked(stop.until_seen(loader), "a batch of the evaluation")

    def example(self, recipe: Recipe, place: int) -> PictureBatch:
        """Two pictures of noise: one has no other to be mixed with."""
        return noise(recipe, torch.tensor([2 * place, 2 * place + 1]))

    def full_batch(self, recipe: Recipe, micro_batch: int) -> PictureBatch:
        """All batches are as large as this."""
        return noise(recipe, torch.arange(micro_batch))


def noise(recipe: Recipe, places: torch.Tensor) -> PictureBatch:
    """Pictures of noise, of the first two classes in turn, at these places of the stream."""
    side, count = _side(recipe), len(places)
    generator = torch.Generator().manual_seed(int(places[0]))
    return PictureBatch(
        images=torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator),
        labels=torch.arange(count) % 2,
        sample_ids=places,
        positions=places,
    )


def _side(recipe: Recipe) -> int:
    """Of the pictures that the task takes, in pixels."""
    return recipe.data.crop_size or vit_config(recipe.model.preset).image_size
