"""Batches of whole pictures for training and evaluation, made ahead of time by worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sam_ds.config.schema import DataConfig, EvalConfig, Recipe
from sam_ds.data.crops import evaluated, random_resized_crop
from sam_ds.data.files import BadSampleError
from sam_ds.data.imagenet import NO_CLASS, PictureIndex
from sam_ds.data.pictures import PictureReader, open_picture
from sam_ds.data.pixels import cut, random_color, recolor, resize
from sam_ds.data.quarantine import Bad, Quarantine, first_good
from sam_ds.data.sampler import Sampler, Share
from sam_ds.data.stream import EvalStream, Loaded, TrainStream
from sam_ds.data.transforms import decode_scale
from sam_ds.types import PictureBatch


class PictureTrainLoader(TrainStream[PictureBatch]):
    """The endless stream of training batches, seen from one rank: random resized crops, flips, changed colours.

    What it yields is a function of (index, recipe, side, step) and the rank's share, whatever the number of workers
    and wherever it starts.

    Args:
        side: of the model's input.
        share: what the rank takes.
        quarantine: the file that bad pictures are appended to, or None.
    """

    def __init__(
        self,
        index: PictureIndex,
        recipe: Recipe,
        side: int,
        share: Share,
        quarantine: Path | None,
    ) -> None:
        super().__init__(
            _Drawn(index, recipe.data, side, recipe.seed),
            share,
            recipe.data.workers,
            Quarantine(quarantine, recipe.data.bad_budget, len(index)),
        )


class PictureEvalLoader(EvalStream[PictureBatch]):
    """The evaluation pictures of one rank in a fixed order, once a loop: the shorter side resized, the middle cut.

    A rank that runs out gets a black picture; bad pictures come as such too. Those have no class, and -1 for their
    ``sample_ids`` and ``positions``; elsewhere both are the picture's place in the index.
    """

    def __init__(
        self, index: PictureIndex, data: DataConfig, side: int, eval: EvalConfig, rank: int, world: int
    ) -> None:
        super().__init__(_Whole(index, data, side), len(index), data.workers, eval, rank, world)


@dataclass(frozen=True)
class _Shown:
    """A picture of a batch, but for its pixels."""

    sample: int = -1  # its place in the index; -1: there is none
    label: int = NO_CLASS


class _Drawn:
    """Training batches by their stream positions; every random choice is a function of (seed, epoch, sample)."""

    def __init__(self, index: PictureIndex, data: DataConfig, side: int, seed: int) -> None:
        self.reader, self.data, self.side, self.seed = PictureReader(index), data, side, seed
        self.sampler = Sampler(len(index), seed)

    def __call__(self, positions: list[int]) -> Loaded[PictureBatch]:
        images = _black(len(positions), self.side)
        shown, bad = [], []
        for position, image in zip(positions, images, strict=True):
            make = partial(self._draw, self.sampler.epoch(position), image)
            picture, bad_ones = first_good(self.sampler, position, make, self.reader.index.name)
            bad += bad_ones
            if picture is None:
                return Loaded(None, bad)
            shown.append(picture)
        return Loaded(_batch(images, shown, positions), bad)

    def _draw(self, epoch: int, image: Tensor, sample: int) -> _Shown:
        content, label = self.reader.read(sample)
        image.copy_(self._view(np.random.default_rng((self.seed, epoch, sample)), content))
        return _Shown(sample, label)

    def _view(self, rng: np.random.Generator, content: bytes) -> Tensor:
        picture, transforms = open_picture(content), self.data.transforms
        box = random_resized_crop(rng, transforms, picture.size)
        flip, color = rng.random() < transforms.flip, random_color(rng, transforms)
        scale = 1 if self.data.exact else decode_scale(picture.size, box.shorter, self.side)
        pixels, scale = picture.pixels(scale)
        view = resize(cut(pixels, box, scale), (self.side, self.side), "bicubic")
        view = view.flip(-1) if flip else view
        return view if color is None else recolor(view, color)


class _Whole:
    """Evaluation batches by their samples; no samples: one black picture."""

    def __init__(self, index: PictureIndex, data: DataConfig, side: int) -> None:
        self.reader, self.exact, self.side = PictureReader(index), data.exact, side

    def __call__(self, chosen: list[int]) -> Loaded[PictureBatch]:
        images = _black(max(1, len(chosen)), self.side)
        bad: list[Bad] = []
        shown = [self._show(sample, image, bad) for sample, image in zip(chosen, images, strict=False)] or [_Shown()]
        return Loaded(_batch(images, shown, [picture.sample for picture in shown]), bad)

    def _show(self, sample: int, image: Tensor, bad: list[Bad]) -> _Shown:
        try:
            content, label = self.reader.read(sample)
            image.copy_(self._view(content))
        except BadSampleError as error:
            bad.append(Bad(sample, self.reader.index.name(sample), str(error)))
            return _Shown()
        return _Shown(sample, label)

    def _view(self, content: bytes) -> Tensor:
        picture = open_picture(content)
        seen, resized, middle = evaluated(picture.size, self.side)
        scale = 1 if self.exact else decode_scale(picture.size, seen.shorter, min(resized))
        pixels, scale = picture.pixels(scale)
        whole = resize(cut(pixels, seen, scale), resized, "bicubic")
        return whole[:, middle.top : middle.bottom, middle.left : middle.right]


def _black(count: int, side: int) -> Tensor:
    return torch.zeros(count, 3, side, side, dtype=torch.uint8)


def _batch(images: Tensor, shown: list[_Shown], positions: list[int]) -> PictureBatch:
    return PictureBatch(
        images=images,
        labels=torch.tensor([picture.label for picture in shown]),
        sample_ids=torch.tensor([picture.sample for picture in shown]),
        positions=torch.tensor(positions),
    )
