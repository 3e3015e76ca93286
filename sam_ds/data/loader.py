"""Batches of SA-1B's samples for training and evaluation, made ahead of time by worker processes."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from pathlib import Path

from sam_ds.config import curriculum
from sam_ds.config.schema import DataConfig, EvalConfig, Recipe
from sam_ds.data.index import Index
from sam_ds.data.quarantine import Quarantine
from sam_ds.data.reader import Reader
from sam_ds.data.sampler import Share
from sam_ds.data.samples import SampleMaker, collate
from sam_ds.data.stream import EvalStream, Loaded, TrainStream
from sam_ds.types import SegmentBatch


class TrainLoader(TrainStream[SegmentBatch]):
    """The endless stream of training batches, seen from one rank.

    What it yields is a function of (index, recipe, image_size, step) and the rank's share, whatever the number of
    workers and wherever it starts.

    Args:
        image_size: side of the model's input.
        share: what the rank takes.
        quarantine: the file that bad pictures are appended to, or None.
    """

    def __init__(
        self,
        index: Index,
        recipe: Recipe,
        image_size: int,
        share: Share,
        quarantine: Path | None,
    ) -> None:
        stages = curriculum.stages(recipe)
        self._first_steps = [first for first, _ in stages]
        reader = Reader(index)
        makers = [SampleMaker(index, stage.data, image_size, recipe.seed, reader) for _, stage in stages]
        super().__init__(
            _Drawn(makers),
            share,
            recipe.data.workers,
            Quarantine(quarantine, recipe.data.bad_budget, len(index)),
        )

    def key(self, step: int, positions: list[int]) -> tuple[int, list[int]]:
        """The stage of the curriculum, and the positions."""
        return bisect_right(self._first_steps, step) - 1, positions


class EvalLoader(EvalStream[SegmentBatch]):
    """The evaluation pictures of one rank, whole, in a fixed order, once a loop.

    A rank that runs out gets black pictures without masks, and bad pictures come as such too. ``positions`` and
    ``sample_ids`` are both the picture's place in the index.
    """

    def __init__(
        self, index: Index, data: DataConfig, image_size: int, eval: EvalConfig, rank: int, world: int
    ) -> None:
        maker = SampleMaker(index, replace(data, crop_size=0), image_size, seed=0)
        super().__init__(_Whole(maker, eval.max_masks), len(index), data.workers, eval, rank, world)


class _Drawn:
    """Training batches by their stage of the curriculum and their stream positions."""

    def __init__(self, makers: list[SampleMaker]) -> None:
        self.makers = makers

    def __call__(self, key: tuple[int, list[int]]) -> Loaded[SegmentBatch]:
        stage, positions = key
        samples, bad = [], []
        images = self.makers[stage].black(len(positions))
        for position, image in zip(positions, images, strict=True):
            sample, bad_ones = self.makers[stage].for_training(position, image)
            bad += bad_ones
            if sample is None:
                return Loaded(None, bad)
            samples.append(sample)
        return Loaded(collate(images, samples), bad)


class _Whole:
    """Evaluation batches by their samples; no samples: one black picture."""

    def __init__(self, maker: SampleMaker, max_masks: int) -> None:
        self.maker, self.max_masks = maker, max_masks

    def __call__(self, chosen: list[int]) -> Loaded[SegmentBatch]:
        images = self.maker.black(max(1, len(chosen)))
        made = [self.maker.for_evaluation(s, self.max_masks, i) for s, i in zip(chosen, images, strict=False)]
        samples = [sample for sample, _ in made] or [self.maker.blank(0)]
        return Loaded(collate(images, samples), [bad for _, bad_ones in made for bad in bad_ones])
