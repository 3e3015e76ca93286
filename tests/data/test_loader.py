"""Batches are a function of the step: for any workers, any start, any number of ranks."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from sam_ds.config.errors import UserError
from sam_ds.config.schema import CurriculumConfig, DataConfig, EvalConfig, Recipe, TransformConfig
from sam_ds.data.index import open_index
from sam_ds.data.loader import EvalLoader, TrainLoader
from sam_ds.data.sampler import Share
from sam_ds.ops.rasterize import rasterize
from sam_ds.types import SegmentBatch

SIDE = 48
DATA = DataConfig(
    workers=0,
    max_masks=3,
    transforms=TransformConfig(flip=0.5, crop=(0.5, 1.0), object_crop=0.3, rotate=10, brightness=0.2, hue=0.1),
)


def _train(folder: Path, rank: int = 0, world: int = 1, data: DataConfig = DATA, **changes) -> TrainLoader:
    options = {"micro_batch": 2, "accumulation": 4 // world, **changes}
    return TrainLoader(
        open_index(folder), Recipe("t", seed=5, data=data), SIDE, Share(rank=rank, world=world, **options), None
    )


def _tensors(batch) -> Iterator[tuple[str, torch.Tensor]]:
    for field in fields(batch):
        value = getattr(batch, field.name)
        yield from [(field.name, value)] if isinstance(value, torch.Tensor) else _tensors(value)


def _same(first: SegmentBatch, second: SegmentBatch) -> bool:
    pairs = zip(_tensors(first), _tensors(second), strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for (_, a), (_, b) in pairs)


def _steps(loader: TrainLoader, start: int, count: int) -> list[list[SegmentBatch]]:
    return list(islice(loader.steps(start), count))


def test_batch_is_as_typed(drawn: Path) -> None:
    (micros,) = _steps(_train(drawn / "train"), 0, 1)
    assert len(micros) == 4
    for batch in micros:
        objects = len(batch.runs)
        assert batch.images.shape == (2, 3, SIDE, SIDE) and batch.images.dtype == torch.uint8
        assert batch.valid_sizes.dtype == batch.runs.sizes.dtype == batch.runs.ends.dtype == torch.int32
        assert batch.to_source.shape == (2, 2, 3) and batch.to_source.dtype == torch.float32
        assert batch.runs.sizes.shape == (objects, 2) and len(batch.picture) == len(batch.mask_ids) == objects
        assert batch.picture.diff().ge(0).all() and 0 < objects <= 6
        assert all(t.dtype == torch.int64 for t in (batch.picture, batch.mask_ids, batch.positions, batch.sample_ids))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(drawn: Path, workers: int) -> None:
    alone = _steps(_train(drawn / "train"), 2, 3)
    helped = _steps(_train(drawn / "train", data=replace(DATA, workers=workers)), 2, 3)
    assert all(_same(a, b) for x, y in zip(alone, helped, strict=True) for a, b in zip(x, y, strict=True))


def test_leaving_in_the_middle_ends_the_workers(drawn: Path) -> None:
    """What else held the iterator when Python exits, an exception say, must not keep the process for ever."""
    code = f"""
from sam_ds.config.schema import DataConfig, Recipe
from sam_ds.data.index import open_index
from sam_ds.data.loader import TrainLoader
from sam_ds.data.sampler import Share
recipe, index = Recipe("t", data=DataConfig(workers=2)), open_index({str(drawn / "train")!r})
loader = TrainLoader(index, recipe, {SIDE}, Share(2, 1, 0, 1), None)
steps = loader.steps(0)
next(steps)
"""
    left = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (left.returncode, left.stderr) == (0, "")


def test_starting_later_skips_exactly(drawn: Path) -> None:
    """12 pictures, 8 a step: the stretch goes over two ends of an epoch."""
    straight = _steps(_train(drawn / "train"), 0, 6)
    for start in (1, 3):
        resumed = _steps(_train(drawn / "train"), start, 6 - start)
        assert all(
            _same(a, b) for x, y in zip(straight[start:], resumed, strict=True) for a, b in zip(x, y, strict=True)
        )


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_same_global_batches(drawn: Path, world: int) -> None:
    def pictures(batches: list[SegmentBatch]) -> dict[int, tuple[int, bytes, bytes]]:
        return {
            int(position): (int(sample), image.numpy().tobytes(), matrix.numpy().tobytes())
            for batch in batches
            for position, sample, image, matrix in zip(
                batch.positions, batch.sample_ids, batch.images, batch.to_source, strict=True
            )
        }

    alone = _steps(_train(drawn / "train"), 0, 3)
    ranks = [_steps(_train(drawn / "train", rank, world), 0, 3) for rank in range(world)]
    for step in range(3):
        assert pictures(alone[step]) == pictures([batch for rank in ranks for batch in rank[step]])


def test_an_epoch_shows_every_picture_once_and_the_next_differs(drawn: Path) -> None:
    steps = _steps(_train(drawn / "train", accumulation=6, micro_batch=2), 0, 2)
    samples = [torch.cat([b.sample_ids for b in micros]).tolist() for micros in steps]
    assert sorted(samples[0]) == sorted(samples[1]) == list(range(12)) and samples[0] != samples[1]
    images = [torch.cat([b.images for b in micros]) for micros in steps]
    first, second = (i[s.index(0)] for i, s in zip(images, samples, strict=True))
    assert not torch.equal(first, second)  # the same picture, another view


def test_masks_are_the_true_ones(drawn: Path) -> None:
    """Without transforms, at the picture's own size: what is drawn equals what pycocotools decodes."""
    folder = drawn / "train"
    data = DataConfig(workers=0, max_masks=1000, exact=True)
    index = open_index(folder)
    for picture in range(3):
        path = Path(index.name(picture))
        info = json.loads(path.with_suffix(".json").read_text())
        side = max(info["image"]["height"], info["image"]["width"])
        loader = EvalLoader(index, data, side, EvalConfig(batch=12, max_masks=0), 0, 1)
        (batch,) = loader
        own = batch.picture == picture
        drawn_masks = rasterize(batch.runs, batch.to_source[batch.picture], (side, side))[own]
        height, width = batch.valid_sizes[picture].tolist()
        assert (height, width) == (info["image"]["height"], info["image"]["width"])
        for mask, number in zip(drawn_masks, batch.mask_ids[own].tolist(), strict=True):
            truth = coco_mask.decode(info["annotations"][number]["segmentation"])
            assert np.array_equal(mask[:height, :width].numpy(), truth) and not mask[height:].any()


def test_objects_of_a_crop_are_in_view(drawn: Path) -> None:
    data = replace(DATA, transforms=TransformConfig(object_crop=1.0, object_crop_sides=(2.0, 4.0)), max_masks=100)
    for micros in _steps(_train(drawn / "train", data=data), 0, 4):
        for batch in micros:
            masks = rasterize(batch.runs, batch.to_source[batch.picture], (SIDE, SIDE))
            assert (masks.flatten(1).sum(1) > 0).float().mean() > 0.9


def test_filters(drawn: Path, loose: Path, change_json) -> None:
    def scores(info: dict) -> None:
        for number, annotation in enumerate(info["annotations"]):
            annotation["predicted_iou"] = 0.9 if number == 0 else 0.5
            annotation["stability_score"] = 0.9 if number == 1 else 0.5

    for picture in range(1, 13):
        change_json(picture, scores)
    for option, expected in [("min_predicted_iou", 0), ("min_stability", 1)]:
        data = replace(DATA, **{option: 0.8}, transforms=TransformConfig())
        for batch in _steps(_train(loose, data=data), 0, 1)[0]:
            assert set(batch.mask_ids.tolist()) == {expected}
    limits = DataConfig(workers=0, min_area=200, max_area=0.08)
    for batch in _steps(_train(drawn / "train", data=limits), 0, 1)[0]:
        lengths = [
            batch.runs.ends[a:b].diff(prepend=torch.zeros(1, dtype=torch.int32))[1::2].sum().item()
            for a, b in zip(batch.runs.offsets, batch.runs.offsets[1:], strict=False)
        ]
        pixels = batch.runs.sizes.prod(1).tolist()
        assert all(200 <= n <= 0.08 * all_ for n, all_ in zip(lengths, pixels, strict=True))


def test_masks_are_drawn_evenly(drawn: Path) -> None:
    """Of every picture each mask must come up; which ones differ by epoch."""
    data = DataConfig(workers=0, max_masks=2)
    seen: dict[int, set[int]] = {}
    for micros in _steps(_train(drawn / "train", data=data), 0, 40):
        for batch in micros:
            for picture, mask in zip(batch.picture.tolist(), batch.mask_ids.tolist(), strict=True):
                seen.setdefault(int(batch.sample_ids[picture]), set()).add(mask)
    index = open_index(drawn / "train")
    for sample, masks in seen.items():
        info = json.loads(Path(index.name(sample)).with_suffix(".json").read_text())
        assert masks == set(range(len(info["annotations"])))


def test_stages_share_open_files(drawn: Path) -> None:
    recipe = Recipe("t", data=DATA, curriculum=CurriculumConfig(parts=(0.5, 0.5), max_masks=(1, 2)))
    make = TrainLoader(open_index(drawn / "train"), recipe, SIDE, Share(2, 1, 0, 1), None)._make
    for makers in (make.makers, pickle.loads(pickle.dumps(make)).makers):
        assert len(makers) == 2 and makers[0].reader is makers[1].reader


def test_loaders_can_be_pickled(drawn: Path) -> None:
    """So that processes can be spawned as well as forked."""
    loader = _train(drawn / "train")
    copy = pickle.loads(pickle.dumps(loader._make))
    assert _same(copy((0, [0, 1])).batch, loader._make((0, [0, 1])).batch)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_picture_once(drawn: Path, world: int) -> None:
    index = open_index(drawn / "train")
    loaders = [EvalLoader(index, DATA, SIDE, EvalConfig(batch=2), rank, world) for rank in range(world)]
    batches = [list(loader) for loader in loaders]
    assert len({len(b) for b in batches}) == 1 and all(
        len(b) == len(loader) for b, loader in zip(batches, loaders, strict=True)
    )
    seen = [int(s) for rank in batches for b in rank for s in b.sample_ids[b.picture.unique()]]
    assert sorted(seen) == list(range(12))


def test_evaluation_of_few_pictures_and_masks(drawn: Path) -> None:
    index = open_index(drawn / "train")
    config = EvalConfig(batch=4, max_pictures=3, max_masks=2)
    ranks = [list(EvalLoader(index, DATA, SIDE, config, rank, 4)) for rank in range(4)]
    assert [len(r) for r in ranks] == [1] * 4
    assert [int(r[0].sample_ids[0]) for r in ranks[:3]] == [0, 6, 11]
    assert len(ranks[3][0].runs) == 0 and ranks[3][0].images.shape == (1, 3, SIDE, SIDE)
    assert all(len(r[0].runs) == 2 for r in ranks[:3])
    again = [list(EvalLoader(index, DATA, SIDE, config, rank, 4)) for rank in range(4)]
    assert all(_same(a[0], b[0]) for a, b in zip(ranks, again, strict=True))


def test_real_pictures(data_dir: Path) -> None:
    for name in ("photos", "nuclei"):
        index = open_index(data_dir / name / "val")
        batches = list(EvalLoader(index, DataConfig(workers=0), 128, EvalConfig(batch=8, max_pictures=8), 0, 1))
        assert sum(len(b.runs) for b in batches) > 8
        micros = next(TrainLoader(index, Recipe("t", data=DATA), 128, Share(4, 1, 0, 1), None).steps(0))
        assert len(micros[0].runs) > 0


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no picture with masks"):
        open_index(tmp_path)


def test_crops_are_for_training_only(drawn: Path) -> None:
    index = open_index(drawn / "val")
    plain, cropped = (
        next(iter(EvalLoader(index, replace(DATA, crop_size=side), SIDE, EvalConfig(), 0, 1))) for side in (0, 16)
    )
    assert _same(plain, cropped)
    trained = next(_train(drawn / "train", data=replace(DATA, crop_size=16)).steps(0))
    assert trained[0].images.shape[-1] == 16
