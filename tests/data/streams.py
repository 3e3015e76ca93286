"""A loader of small batches by two workers, and what comes out of it, to be compared."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from sam_ds.config.schema import DataConfig, Recipe
from sam_ds.data.index import Index, open_index
from sam_ds.data.loader import TrainLoader
from sam_ds.data.sampler import Share
from sam_ds.types import SegmentBatch

SIDE = 48
DATA = DataConfig(workers=2, max_masks=3)


def train_loader(
    where: Path | Index, data: DataConfig = DATA, rank: int = 0, world: int = 1, record: Path | None = None
):
    index = where if isinstance(where, Index) else open_index(where)
    return TrainLoader(index, Recipe("t", seed=5, data=data), SIDE, Share(4 // world, 1, rank, world), record)


def content_of(batch: SegmentBatch) -> tuple[list[int], bytes, bytes]:
    return batch.sample_ids.tolist(), batch.images.numpy().tobytes(), batch.runs.ends.numpy().tobytes()


def stream_of(loader: TrainLoader, steps: int) -> list[tuple[list[int], bytes, bytes]]:
    return [content_of(batch) for batches in islice(loader.steps(0), steps) for batch in batches]
