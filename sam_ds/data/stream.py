"""What loaders of every kind of batch have in common: the order of the stream, workers, bad pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from sam_ds.config.schema import EvalConfig
from sam_ds.data.quarantine import Bad, Quarantine
from sam_ds.data.sampler import Share
from sam_ds.data.workers import make_ahead

_logger = logging.getLogger(__name__)


class _Batch(Protocol):
    def pin_memory(self: _BatchT) -> _BatchT: ...


_BatchT = TypeVar("_BatchT", bound=_Batch)


@dataclass(frozen=True)
class Loaded(Generic[_BatchT]):
    """What a worker hands over. The training process keeps the record of bad pictures, in the order of the stream."""

    batch: _BatchT | None  # None: one substitute after another was bad
    bad: list[Bad]

    def pin_memory(self) -> Loaded[_BatchT]:
        return Loaded(self.batch and self.batch.pin_memory(), self.bad)


class TrainStream(Generic[_BatchT]):
    """The endless stream of training batches, seen from one rank.

    Args:
        make: a batch of what ``key`` says of a step's stream positions. It goes to other processes.
        workers: processes that make batches; 0: this one does.
    """

    def __init__(
        self, make: Callable[[Any], Loaded[_BatchT]], share: Share, workers: int, quarantine: Quarantine
    ) -> None:
        self.share, self.workers, self.quarantine, self._make = share, workers, quarantine, make

    def key(self, step: int, positions: list[int]) -> Any:
        """What a batch of an optimizer step is made of."""
        return positions

    def steps(self, start: int, left_out: int = 0) -> Iterator[list[_BatchT]]:
        """The micro-batches of optimizer step ``start``, then of the next, without end.

        Args:
            left_out: how many steps' worth of pictures the stream is ahead.

        Raises:
            UserError: too many pictures are bad, or the machine has no more files or memory to give.
        """
        keys = (
            self.key(step, self.share.positions(step + left_out, micro))
            for step in count(start)
            for micro in range(self.share.accumulation)
        )
        loaded = _load(self._make, keys, self.workers)
        while True:
            yield [self._take(next(loaded)) for _ in range(self.share.accumulation)]

    def _take(self, loaded: Loaded[_BatchT]) -> _BatchT:
        self.quarantine.add(loaded.bad, self.share.micro_batch)
        if loaded.batch is None:
            raise self.quarantine.give_up(loaded.bad)
        return loaded.batch


class EvalStream(Generic[_BatchT]):
    """The evaluation pictures of one rank in a fixed order, once a loop.

    Every rank gets the same number of batches; a rank that runs out gets one of no pictures. Bad pictures are named in
    a warning and in ``bad``.

    Args:
        make: a batch of some pictures by their places in the index. It goes to other processes.
        pictures: in the index.
    """

    def __init__(
        self,
        make: Callable[[list[int]], Loaded[_BatchT]],
        pictures: int,
        workers: int,
        eval: EvalConfig,
        rank: int,
        world: int,
    ) -> None:
        if 0 < eval.max_pictures < pictures:
            chosen = np.linspace(0, pictures - 1, eval.max_pictures).round().astype(int).tolist()
        else:
            chosen = list(range(pictures))
        self.workers, self._make = workers, make
        self.bad: list[Bad] = []
        self._num_batches = -(-len(chosen) // (world * eval.batch))
        mine = chosen[rank::world]
        self._batches = [mine[i * eval.batch : (i + 1) * eval.batch] for i in range(self._num_batches)]

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[_BatchT]:
        self.bad = []
        for loaded in _load(self._make, iter(self._batches), min(self.workers, len(self))):
            assert loaded.batch is not None
            for bad in loaded.bad:
                self.bad.append(bad)
                _logger.warning("left out of the evaluation: %s: %s", bad.file, bad.reason)
            yield loaded.batch


def _load(make: Callable[[Any], Loaded[_BatchT]], keys: Iterator[Any], workers: int) -> Iterator[Loaded[_BatchT]]:
    """One item a key, in order; by worker processes if there are any."""
    if workers == 0:
        yield from map(make, keys)
        return
    loaded = make_ahead(make, keys, workers)
    yield from _pinned(loaded) if torch.cuda.is_available() else loaded


def _pinned(items: Iterator[Loaded[_BatchT]]) -> Iterator[Loaded[_BatchT]]:
    """Taken and copied to page-locked memory by a thread, one ahead: the training does not wait for the copy."""

    def following() -> Loaded[_BatchT] | None:
        loaded = next(items, None)
        return loaded and loaded.pin_memory()

    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(following)
        while loaded := coming.result():
            coming = thread.submit(following)
            yield loaded
