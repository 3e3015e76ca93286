"""Batches for training and evaluation, made ahead of time by worker processes."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sam_ds.config import curriculum
from sam_ds.config.schema import DataConfig, EvalConfig, Recipe
from sam_ds.data.index import Index
from sam_ds.data.quarantine import Quarantine
from sam_ds.data.reader import Reader
from sam_ds.data.sampler import Share
from sam_ds.data.samples import Bad, SampleMaker, collate
from sam_ds.data.workers import make_ahead
from sam_ds.types import SegmentBatch

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Loaded:
    """What a worker hands over. The training process keeps the record of bad pictures, in the order of the stream."""

    batch: SegmentBatch | None  # None: one substitute after another was bad
    bad: list[Bad]

    def pin_memory(self) -> _Loaded:
        return _Loaded(self.batch and self.batch.pin_memory(), self.bad)


class TrainLoader:
    """The endless stream of training batches, seen from one rank.

    What it yields is a function of (index, recipe, image_size, step) and the rank's share, whatever the number of
    workers and wherever it starts.

    Args:
        image_size: side of the model's input.
        micro_batch: pictures a rank takes at once.
        accumulation: micro-batches of one optimizer step.
        quarantine: the file that bad pictures are appended to, or None.
    """

    def __init__(
        self,
        index: Index,
        recipe: Recipe,
        image_size: int,
        micro_batch: int,
        accumulation: int,
        rank: int,
        world: int,
        quarantine: Path | None,
    ) -> None:
        self.share = Share(micro_batch, accumulation, rank, world)
        self.workers = recipe.data.workers
        self.quarantine = Quarantine(quarantine, recipe.data.bad_budget, len(index))
        stages = curriculum.stages(recipe)
        self._first_steps = [first for first, _ in stages]
        reader = Reader(index)
        makers = [SampleMaker(index, stage.data, image_size, recipe.seed, reader) for _, stage in stages]
        self._dataset = _Stream(makers)

    def steps(self, start: int, left_out: int = 0) -> Iterator[list[SegmentBatch]]:
        """The micro-batches of optimizer step ``start``, then of the next, without end.

        Args:
            left_out: how many steps' worth of pictures the stream is ahead.

        Raises:
            UserError: too many pictures are bad, or the machine has no more files or memory to give.
        """
        keys = (
            (bisect_right(self._first_steps, step) - 1, self.share.positions(step + left_out, micro))
            for step in count(start)
            for micro in range(self.share.accumulation)
        )
        loaded = _load(self._dataset, keys, self.workers)
        while True:
            yield [self._take(next(loaded)) for _ in range(self.share.accumulation)]

    def _take(self, loaded: _Loaded) -> SegmentBatch:
        self.quarantine.add(loaded.bad, self.share.micro_batch)
        if loaded.batch is None:
            raise self.quarantine.give_up(loaded.bad)
        return loaded.batch


class EvalLoader:
    """The evaluation pictures of one rank, whole, in a fixed order, once a loop.

    Every rank gets the same number of batches; a rank that runs out gets black pictures without masks. Bad pictures
    come as such too, and are named in a warning and in ``bad``. ``positions`` and ``sample_ids`` are both the
    picture's place in the index.
    """

    def __init__(
        self, index: Index, data: DataConfig, image_size: int, eval: EvalConfig, rank: int, world: int
    ) -> None:
        pictures = len(index)
        if 0 < eval.max_pictures < pictures:
            chosen = np.linspace(0, pictures - 1, eval.max_pictures).round().astype(int).tolist()
        else:
            chosen = list(range(pictures))
        self.workers = data.workers
        self.bad: list[Bad] = []
        self._num_batches = -(-len(chosen) // (world * eval.batch))
        mine = chosen[rank::world]
        self._batches = [mine[i * eval.batch : (i + 1) * eval.batch] for i in range(self._num_batches)]
        self._dataset = _Pictures(SampleMaker(index, replace(data, crop_size=0), image_size, seed=0), eval.max_masks)

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[SegmentBatch]:
        self.bad = []
        for loaded in _load(self._dataset, iter(self._batches), min(self.workers, len(self))):
            assert loaded.batch is not None
            for bad in loaded.bad:
                self.bad.append(bad)
                _logger.warning("left out of the evaluation: %s: %s", bad.file, bad.reason)
            yield loaded.batch


class _Stream:
    """Training batches by their stage of the curriculum and their stream positions."""

    def __init__(self, makers: list[SampleMaker]) -> None:
        self.makers = makers

    def __getitem__(self, key: tuple[int, list[int]]) -> _Loaded:
        stage, positions = key
        samples, bad = [], []
        images = self.makers[stage].black(len(positions))
        for position, image in zip(positions, images, strict=True):
            sample, bad_ones = self.makers[stage].for_training(position, image)
            bad += bad_ones
            if sample is None:
                return _Loaded(None, bad)
            samples.append(sample)
        return _Loaded(collate(images, samples), bad)


class _Pictures:
    """Evaluation batches by their samples; no samples: one black picture."""

    def __init__(self, maker: SampleMaker, max_masks: int) -> None:
        self.maker, self.max_masks = maker, max_masks

    def __getitem__(self, chosen: list[int]) -> _Loaded:
        images = self.maker.black(max(1, len(chosen)))
        made = [self.maker.for_evaluation(s, self.max_masks, i) for s, i in zip(chosen, images, strict=False)]
        samples = [sample for sample, _ in made] or [self.maker.blank(0)]
        return _Loaded(collate(images, samples), [bad for _, bad_ones in made for bad in bad_ones])


def _load(dataset: _Stream | _Pictures, keys: Iterator[Any], workers: int) -> Iterator[_Loaded]:
    """One item a key, in order; by worker processes if there are any."""
    if workers == 0:
        yield from map(dataset.__getitem__, keys)
        return
    loaded = make_ahead(dataset.__getitem__, keys, workers)
    yield from _pinned(loaded) if torch.cuda.is_available() else loaded


def _pinned(items: Iterator[_Loaded]) -> Iterator[_Loaded]:
    """Taken and copied to page-locked memory by a thread, one ahead: the training does not wait for the copy."""

    def following() -> _Loaded | None:
        loaded = next(items, None)
        return loaded and loaded.pin_memory()

    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(following)
        while loaded := coming.result():
            coming = thread.submit(following)
            yield loaded
