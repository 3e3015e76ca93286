"""What the trainer needs for ``DetectObjects``: its data and its evaluation."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.config.errors import UserError
from sam_ds.config.extras import need
from sam_ds.config.schema import Recipe
from sam_ds.data.annotated import eval_stream, train_stream
from sam_ds.data.boxes import BoxMaker
from sam_ds.data.coco import CocoSet, open_coco_splits
from sam_ds.data.stream import TrainStream
from sam_ds.engine import distributed
from sam_ds.engine.preemption import stop
from sam_ds.engine.watchdog import watchdog
from sam_ds.evaluation import coco
from sam_ds.evaluation.galleries import BoxGallery
from sam_ds.modeling.feature_pyramid import DETECTION_SCALES
from sam_ds.modeling.presets import sam_config
from sam_ds.training.splits import SplitsKit, own_share
from sam_ds.types import BoxBatch

RESULTS = "boxes.json"  # what an evaluation found, in COCO's format of results, beside its pictures
_logger = logging.getLogger(__name__)


class DetectObjectsKit(SplitsKit[CocoSet]):
    """Detection on COCO's format."""

    def score(self, recipe: Recipe, results: dict[str, float]) -> float:
        """What the best checkpoint is chosen by: average precision over IoUs of .5 to .95."""
        return results["ap"]

    def check(self, recipe: Recipe) -> None:
        need("task=detect_objects", ("transformers", "scipy"), "downstream")
        grid = sam_config(recipe.model.preset).grid_size
        cells = sum(int(grid * scale) ** 2 for scale in DETECTION_SCALES)
        if recipe.detect.num_queries > cells:
            raise UserError(
                f"detect.num_queries={recipe.detect.num_queries}: {recipe.model.preset} has {cells} cells for them"
            )

    def build(self, recipe: Recipe) -> Any:
        self.check(recipe)
        from sam_ds.tasks.detect_objects import DetectObjects  # transformers takes seconds to import

        return DetectObjects(recipe)

    def open_data(self, data: str, val: str | None, tell: Callable[[str], None] | None = None) -> None:
        """``data`` is laid out as COCO is; ``val``, laid out alike, brings another set to evaluate on."""
        self._splits = open_coco_splits(data, val, tell)

    def train_loader(self, recipe: Recipe, config: DeepSpeedConfig, quarantine: Path | None) -> TrainStream[BoxBatch]:
        """Raises UserError if the data has other classes than the recipe."""
        pictures = self.splits[0]
        _check_classes(pictures, recipe)
        maker = BoxMaker(pictures, recipe.data, _side(recipe), recipe.seed)
        return train_stream(maker, recipe, own_share(config), quarantine)

    def baselines(self, recipe: Recipe, device: torch.device) -> dict[str, dict[str, float]]:
        """None: no rule without learning finds boxes that COCO's evaluation would count."""
        return {}

    def evaluate(
        self, model: Any, recipe: Recipe, device: torch.device, pictures: Path
    ) -> tuple[dict[str, float], list[Path]]:
        """COCO's figures; the boxes found are written beside the pictures, as ``boxes.json``."""
        gallery = BoxGallery(pictures, recipe.eval.pictures if distributed.is_main() else 0)
        _check_classes(self.splits[1], recipe)
        maker = BoxMaker(self.splits[1], recipe.data, _side(recipe))
        loader = eval_stream(maker, recipe.eval, distributed.rank(), distributed.world_size())
        batches = watchdog.marked(stop.until_seen(loader), "a batch of the evaluation")
        own = coco.find_boxes(model, batches, self.splits[1], device, gallery)
        stop.check()
        everyones = distributed.gather(own)

        def score() -> dict[str, float]:
            samples = sorted(sample for found in everyones for sample in found.samples)
            rows = np.concatenate([found.rows for found in everyones])
            _write(pictures / RESULTS, coco.as_results(rows))
            return coco.score_boxes(self.splits[1], samples, rows)

        return distributed.on_main(score, watchdog.meet), gallery.paths

    def table(self, results: dict[str, dict[str, float]]) -> str:
        return coco.coco_table(results)

    def example(self, recipe: Recipe, place: int) -> BoxBatch:
        """A picture of noise with none, one or two boxes."""
        return _batch(recipe, torch.tensor([place]), place % 3)

    def full_batch(self, recipe: Recipe, micro_batch: int) -> BoxBatch:
        """Every picture with as many boxes as COCO's evaluation looks at."""
        return _batch(recipe, torch.arange(micro_batch), min(coco.MAX_FOUND, recipe.detect.num_queries))


def _check_classes(pictures: CocoSet, recipe: Recipe) -> None:
    count = len(pictures.categories)
    if count != recipe.detect.num_classes:
        raise UserError(
            f"{pictures.annotations} has {count} categories, and detect.num_classes={recipe.detect.num_classes}: "
            f"--set detect.num_classes={count}"
        )


def _write(path: Path, results: list[dict[str, Any]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results) + "\n", encoding="utf-8")
    except OSError as error:  # no reason to lose what is evaluated
        _logger.warning("not written: %s (%s)", path, error.strerror)


def _side(recipe: Recipe) -> int:
    """Pixels along the side of the model's input."""
    return sam_config(recipe.model.preset).image_size


def _batch(recipe: Recipe, places: torch.Tensor, num_boxes: int) -> BoxBatch:
    """Pictures of noise at these places of the stream, each with so many boxes."""
    side, count = _side(recipe), len(places)
    generator = torch.Generator().manual_seed(int(places[0]))
    corners = torch.rand(count * num_boxes, 2, generator=generator) * side / 2
    sizes = side / 8 + torch.rand(count * num_boxes, 2, generator=generator) * side / 4
    return BoxBatch(
        images=torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator),
        valid_sizes=torch.full((count, 2), side, dtype=torch.int32),
        to_source=torch.eye(2, 3).expand(count, 2, 3).clone(),
        boxes=torch.cat([corners, corners + sizes], dim=1),
        labels=torch.arange(count * num_boxes) % recipe.detect.num_classes,
        counts=torch.full((count,), num_boxes),
        sample_ids=places,
        positions=places,
    )
