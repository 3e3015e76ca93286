"""What the trainer needs for ``SegmentImages``: its data, its evaluation, its baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from sam_ds.config import curriculum
from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.config.schema import Recipe
from sam_ds.data.index import Index, open_splits
from sam_ds.data.loader import EvalLoader, TrainLoader
from sam_ds.engine import distributed
from sam_ds.engine.preemption import stop
from sam_ds.engine.watchdog import watchdog
from sam_ds.evaluation import interactive, metrics
from sam_ds.evaluation.baseline import AREA_PICTURES, DiscBaseline, mean_area_fraction
from sam_ds.evaluation.pictures import Gallery
from sam_ds.modeling.presets import sam_config
from sam_ds.tasks.segment_images import SegmentImages, check_crops
from sam_ds.training.splits import SplitsKit, own_share
from sam_ds.types import MaskRuns, SegmentBatch


class SegmentImagesKit(SplitsKit[Index]):
    """Promptable segmentation on SA-1B's format."""

    def score(self, recipe: Recipe, results: dict[str, float]) -> float:
        """What the best checkpoint is chosen by: mIoU at the last number of clicks, or of the box."""
        return results[f"miou@{max(recipe.eval.clicks)}" if recipe.eval.clicks else "miou@box"]

    def check(self, recipe: Recipe) -> None:
        check_crops(recipe)

    def build(self, recipe: Recipe) -> SegmentImages:
        return SegmentImages(recipe)

    def open_data(self, data: str, val: str | None, tell: Callable[[str], None] | None = None) -> None:
        """``val`` names the pictures to evaluate on; without it, ``data`` is split."""
        self._splits = open_splits(data, tell, val)

    def train_loader(self, recipe: Recipe, config: DeepSpeedConfig, quarantine: Path | None) -> TrainLoader:
        side = sam_config(recipe.model.preset).image_size
        return TrainLoader(self.splits[0], recipe, side, own_share(config), quarantine)

    def rounds(self, recipe: Recipe, step: int) -> int:
        return curriculum.at(recipe, step).prompts.rounds

    def baselines(self, recipe: Recipe, device: torch.device) -> dict[str, dict[str, float]]:
        """A disc of the training masks' mean area at the click, by both rules for more clicks."""
        sampled = dataclasses.replace(recipe.eval, max_pictures=AREA_PICTURES, max_masks=0)
        side = sam_config(recipe.model.preset).image_size
        area = mean_area_fraction(EvalLoader(self.splits[0], recipe.data, side, sampled, rank=0, world=1))
        discs = {"disc": DiscBaseline(area), "disc, nearest": DiscBaseline(area, nearest=True)}
        return {title: self._measure(disc, recipe, device, None) for title, disc in discs.items()}

    def evaluate(
        self, model: interactive.Predictor, recipe: Recipe, device: torch.device, pictures: Path
    ) -> tuple[dict[str, float], list[Path]]:
        gallery = Gallery(pictures, recipe.eval.pictures if distributed.is_main() else 0)
        return self._measure(model, recipe, device, gallery), gallery.paths

    def _measure(
        self, predictor: interactive.Predictor, recipe: Recipe, device: torch.device, gallery: Gallery | None
    ) -> dict[str, float]:
        side = sam_config(recipe.model.preset).image_size
        rank, world = distributed.rank(), distributed.world_size()
        loader = EvalLoader(self.splits[1], recipe.data, side, recipe.eval, rank, world)
        batches = watchdog.marked(stop.until_seen(loader), "a batch of the evaluation")
        sums = interactive.evaluate(predictor, batches, recipe.eval, device, watcher=gallery)
        stop.check()
        total = distributed.all_reduce_sum(sums.to_tensor().to(device))
        return sums.from_tensor(total).metrics()

    def table(self, results: dict[str, dict[str, float]]) -> str:
        return metrics.table(results)

    def example(self, recipe: Recipe, place: int) -> SegmentBatch:
        """A picture of noise with two rectangles."""
        side = sam_config(recipe.model.preset).image_size
        generator = torch.Generator().manual_seed(place)
        top, left = (int(torch.randint(1, side // 4, (), generator=generator)) for _ in range(2))
        rectangles = [(top, left, side // 2, side // 3), (side // 2, top, side // 4, side // 3)]
        return _batch(side, torch.tensor([place]), [_rectangle(side, *rectangle) for rectangle in rectangles])

    def full_batch(self, recipe: Recipe, micro_batch: int) -> SegmentBatch:
        """As large as a recipe's batches get: every picture with as many masks as are drawn from one."""
        side = recipe.data.crop_size or sam_config(recipe.model.preset).image_size
        masks = [_rectangle(side, 1, 1, side // 2, side // 2)] * recipe.data.max_masks
        return _batch(side, torch.arange(micro_batch), masks)


def _batch(side: int, places: torch.Tensor, masks: list[torch.Tensor]) -> SegmentBatch:
    """Square pictures of noise at these places of the stream, each with all the masks (run ends of the same square)."""
    count, runs = len(places), masks * len(places)
    lengths = torch.tensor([0, *map(len, runs)])
    generator = torch.Generator().manual_seed(int(places[0]))
    return SegmentBatch(
        images=torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator),
        valid_sizes=torch.full((count, 2), side, dtype=torch.int32),
        to_source=torch.eye(2, 3).expand(count, 2, 3).clone(),
        runs=MaskRuns(torch.cat(runs), lengths.cumsum(0), torch.full((len(runs), 2), side, dtype=torch.int32)),
        picture=torch.arange(count).repeat_interleave(len(masks)),
        mask_ids=torch.arange(len(masks)).repeat(count),
        sample_ids=places,
        positions=places,
    )


def _rectangle(side: int, top: int, left: int, height: int, width: int) -> torch.Tensor:
    """int32 [R]: run ends of a rectangle, column after column."""
    columns = torch.arange(left, left + width)[:, None] * side  # [width, 1]
    ends = (columns + torch.tensor([top, top + height])).flatten()
    return torch.cat([ends, torch.tensor([side * side])]).int()
