"""Batches of pictures whose annotation lies somewhere else than SA-1B's: boxes of COCO, label maps of ADE20K.

What is alike: the stream, views of pictures as SAM sees them, bad pictures. What a picture's truth is, and what a view
shows of it, a ``Maker`` of each kind says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam_ds.config.schema import DataConfig, EvalConfig, Recipe
from sam_ds.data.files import BadSampleError, Files, unreadable
from sam_ds.data.pictures import open_picture
from sam_ds.data.pixels import random_color, show
from sam_ds.data.quarantine import Bad, Quarantine, first_good
from sam_ds.data.reader import MOST_BYTES
from sam_ds.data.sampler import Sampler, Share
from sam_ds.data.scan import LOOSE
from sam_ds.data.stream import EvalStream, Loaded, TrainStream
from sam_ds.data.transforms import View, random_view, whole_view
from sam_ds.types import BoxBatch, LabelBatch

_NO_BOXES = np.zeros((0, 4))  # of masks, for crops around them
_BatchT = TypeVar("_BatchT", BoxBatch, LabelBatch)
_TruthT = TypeVar("_TruthT")


class PictureSet(Protocol):
    """Pictures of one folder, and their annotations."""

    @property
    def root(self) -> Path: ...
    def __len__(self) -> int: ...
    def name(self, sample: int) -> str: ...


@dataclass(frozen=True)
class Annotated(Generic[_TruthT]):
    """A picture as it lies on disk."""

    content: bytes  # of its file, of any format that pictures are read in
    size: tuple[int, int]  # height and width, as the annotation says
    truth: _TruthT


@dataclass(frozen=True)
class Sample(Generic[_TruthT]):
    """What a batch shows of a picture, but for its pixels."""

    view: View
    truth: _TruthT
    sample: int  # -1: a black picture
    position: int


class Maker(ABC, Generic[_TruthT, _BatchT]):
    """Makes batches of one set; every random choice is a function of (seed, epoch, sample).

    Args:
        side: of the model's input, pixels.
    """

    def __init__(self, pictures: PictureSet, data: DataConfig, side: int, seed: int) -> None:
        self.data, self.side, self.seed = data, side, seed
        self.name, self.size = pictures.name, len(pictures)
        self.sampler = Sampler(len(pictures), seed)
        self._files = Files(pictures.root, [])

    @abstractmethod
    def read(self, sample: int) -> Annotated[_TruthT]:
        """A picture and its truth. Raises BadSampleError."""

    @abstractmethod
    def seen(self, truth: _TruthT, view: View) -> _TruthT:
        """What a view shows of the truth."""

    @abstractmethod
    def nothing(self) -> _TruthT:
        """The truth that goes with a black picture."""

    @abstractmethod
    def collate(self, images: Tensor, samples: list[Sample[_TruthT]]) -> _BatchT:
        """One batch of samples, in their order; ``images`` is uint8 [B, 3, S, S]."""

    def file(self, name: str, what: str, most: int) -> bytes:
        """A file's content. Raises BadSampleError if it is none, or larger than ``most`` bytes."""
        try:
            return self._files.read(LOOSE, name, 0, 0, what, most)
        except OSError as error:
            raise unreadable(error, name) from error
        except ValueError as error:
            if isinstance(error, BadSampleError):
                raise
            raise BadSampleError(f"its {what} has a name that no file has: {error}") from error  # a NUL, say

    def for_training(self, positions: list[int]) -> Loaded[_BatchT]:
        """The batch at these positions of the stream."""
        images, samples, bad = self._black(len(positions)), [], []
        for position, image in zip(positions, images, strict=True):
            sample, bad_ones = first_good(self.sampler, position, self._drawing(position, image), self.name)
            bad += bad_ones
            if sample is None:
                return Loaded(None, bad)
            samples.append(sample)
        return Loaded(self.collate(images, samples), bad)

    def for_evaluation(self, chosen: list[int]) -> Loaded[_BatchT]:
        """Pictures as they are; a bad one is black, and so is the one of a batch without any."""
        images, bad = self._black(max(1, len(chosen))), list[Bad]()
        samples = [self._whole(sample, image, bad) for sample, image in zip(chosen, images, strict=False)]
        return Loaded(self.collate(images, samples or [self._blank()]), bad)

    def _whole(self, sample: int, image: Tensor, bad: list[Bad]) -> Sample[_TruthT]:
        """A picture as it is, or a black one, for a picture that is added to ``bad``."""
        try:
            picture = self.read(sample)
            view = whole_view(picture.size, self.side, self.data.exact)
            return self._shown(picture, view, None, image, sample, sample)
        except BadSampleError as error:
            bad.append(Bad(sample, self.name(sample), str(error)))
            return self._blank()

    def _drawing(self, position: int, image: Tensor) -> Callable[[int], Sample[_TruthT]]:
        """Makes what the stream shows at a position, of a sample that may be the one that belongs there."""

        def draw(sample: int) -> Sample[_TruthT]:
            picture = self.read(sample)
            rng = np.random.default_rng((self.seed, self.sampler.epoch(position), sample))
            transforms, exact = self.data.transforms, self.data.exact
            view = random_view(rng, transforms, picture.size, self.side, _NO_BOXES, _NO_BOXES[:, 0], exact)
            return self._shown(picture, view, random_color(rng, transforms), image, sample, position)

        return draw

    def _shown(
        self,
        picture: Annotated[_TruthT],
        view: View,
        color: npt.NDArray[np.float64] | None,
        image: Tensor,
        sample: int,
        position: int,
    ) -> Sample[_TruthT]:
        found = open_picture(picture.content, upright=False)
        if found.size != picture.size:
            (height, width), said = found.size, picture.size
            raise BadSampleError(f"the picture is {width}x{height}, its annotation says {said[1]}x{said[0]}")
        pixels, denominator = found.pixels(view.denominator)
        show(pixels, replace(view, denominator=denominator), color, image)
        return Sample(view, self.seen(picture.truth, view), sample, position)

    def _blank(self) -> Sample[_TruthT]:
        return Sample(whole_view((self.side, self.side), self.side), self.nothing(), -1, -1)

    def _black(self, count: int) -> Tensor:
        return torch.zeros(count, 3, self.side, self.side, dtype=torch.uint8)


def picture_of(maker: Maker[Any, Any], name: str) -> bytes:
    """The content of a picture's file. Raises BadSampleError."""
    return maker.file(name, "picture", MOST_BYTES["jpg"])


def train_stream(
    maker: Maker[_TruthT, _BatchT], recipe: Recipe, share: Share, quarantine: Path | None
) -> TrainStream[_BatchT]:
    """The endless stream of training batches, seen from the rank whose share it is.

    Args:
        quarantine: the file that bad pictures are appended to, or None.
    """
    record = Quarantine(quarantine, recipe.data.bad_budget, maker.size)
    return TrainStream(maker.for_training, share, recipe.data.workers, record)


def eval_stream(maker: Maker[_TruthT, _BatchT], eval: EvalConfig, rank: int, world: int) -> EvalStream[_BatchT]:
    """The evaluation pictures of one rank, whole, once a loop."""
    return EvalStream(maker.for_evaluation, maker.size, maker.data.workers, eval, rank, world)
