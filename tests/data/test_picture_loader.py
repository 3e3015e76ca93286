"""Batches of whole pictures are a function of the step; bad ones are named and replaced, up to a budget."""

from __future__ import annotations

import errno
import json
import os
import pickle
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from sam_ds.config.errors import UserError
from sam_ds.config.schema import DataConfig, EvalConfig, TransformConfig
from sam_ds.data.imagenet import NO_CLASS, open_picture_splits, open_pictures
from sam_ds.data.picture_loader import PictureEvalLoader
from tests.data.photos import CLASSES, DATA, SIDE, files, jpeg, pack, stream_of, train_loader, write


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write(tmp_path / "folders", files())


def test_batch_is_as_typed(folders: Path) -> None:
    batch, _ = next(train_loader(folders).steps(0))
    assert batch.images.shape == (4, 3, SIDE, SIDE) and batch.images.dtype == torch.uint8
    assert {t.dtype for t in (batch.labels, batch.sample_ids, batch.positions)} == {torch.int64}
    assert batch.labels.shape == batch.sample_ids.shape == batch.positions.shape == (4,) and len(batch) == 4
    index = open_pictures(folders)
    for sample, label in zip(batch.sample_ids.tolist(), batch.labels.tolist(), strict=True):
        assert f"/{CLASSES[label]}/" in index.name(sample)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(folders: Path, workers: int) -> None:
    alone = stream_of(train_loader(folders), 2, 4)
    assert stream_of(train_loader(folders, replace(DATA, workers=workers)), 2, 4) == alone


def test_starting_later_and_leaving_out_skip_exactly(folders: Path) -> None:
    """12 pictures, 8 a step: the stretch goes over ends of epochs."""
    straight = stream_of(train_loader(folders), 0, 6)
    resumed = stream_of(train_loader(folders), 3, 3)
    assert resumed == {position: straight[position] for position in range(24, 48)}
    ahead = [batch for batches in islice(train_loader(folders).steps(1, left_out=2), 1) for batch in batches]
    assert torch.cat([batch.positions for batch in ahead]).tolist() == list(range(24, 32))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_same_global_batches(folders: Path, world: int) -> None:
    alone = stream_of(train_loader(folders), 0, 3)
    ranks: dict = {}
    for rank in range(world):
        ranks |= stream_of(train_loader(folders, rank=rank, world=world), 0, 3)
    assert ranks == alone


def test_epochs_show_every_picture_once_in_other_views(folders: Path) -> None:
    stream = stream_of(train_loader(folders), 0, 3)
    epochs = [{stream[p][0]: stream[p][2] for p in range(start, start + 12)} for start in (0, 12)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert all(epochs[0][sample] != epochs[1][sample] for sample in range(12))


def test_layouts_give_the_same_stream(folders: Path, tmp_path: Path) -> None:
    for name in CLASSES:
        pack(tmp_path / "tars" / f"{name}.tar", {Path(f).name: c for f, c in files().items() if f.startswith(name)})
    assert stream_of(train_loader(tmp_path / "tars"), 0, 3) == stream_of(train_loader(folders), 0, 3)


def test_colours_change(folders: Path) -> None:
    plain = replace(DATA, transforms=replace(DATA.transforms, brightness=0.0, hue=0.0))
    one, other = (stream_of(train_loader(folders, data), 0, 1) for data in (DATA, plain))
    assert all(one[p][:2] == other[p][:2] and one[p][2] != other[p][2] for p in one)


def test_loaders_can_be_pickled(folders: Path) -> None:
    """So that processes can be spawned as well as forked."""
    make = train_loader(folders)._make
    copy = pickle.loads(pickle.dumps(make))
    assert torch.equal(copy([0, 1]).batch.images, make([0, 1]).batch.images)


def test_large_pictures_are_decoded_small(tmp_path: Path) -> None:
    """It shows the same, to a pixel of the view, as boxes then end on decoded pixels; ``exact`` decodes all."""
    pytest.importorskip("simplejpeg")
    write(tmp_path, {f"{i}.jpg": jpeg(i, (300, 400)) for i in range(4)})
    data = DataConfig(workers=0, transforms=TransformConfig(area=(0.5, 1.0), aspect=(0.75, 4 / 3)))
    small, whole = (
        torch.cat([b.images for b in next(train_loader(tmp_path, replace(data, exact=exact)).steps(0))]).int()
        for exact in (False, True)
    )
    assert 0 < (small - whole).abs().float().mean() < 6 < (small - small.roll(1, 0)).abs().float().mean() / 8


FAULTS = {
    "cut": (lambda content: content[: len(content) // 2], "the picture is damaged: image file is truncated"),
    "empty": (lambda content: b"", "the file is empty"),
    "a page": (lambda content: b"<html>", "the file is no picture of a known format"),
    "gone": (lambda content: None, "cannot be read: No such file"),
}


@pytest.mark.parametrize(("fault", "workers"), [*((fault, 0) for fault in FAULTS), ("cut", 2)])
def test_substituted_and_written_down(folders: Path, tmp_path: Path, fault: str, workers: int) -> None:
    index, record = open_pictures(folders), tmp_path / "run" / "quarantine.jsonl"
    path, (damage, reason) = folders / "n02" / "n02_1.JPEG", FAULTS[fault]
    content = damage(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    bad = next(i for i in range(len(index)) if index.name(i).endswith("n02_1.JPEG"))
    stream = stream_of(train_loader(index, replace(DATA, workers=workers), record=record), 0, 4)
    assert sorted(stream) == list(range(32)) and bad not in {sample for sample, _, _ in stream.values()}
    (line,) = record.read_text().splitlines()
    entry = json.loads(line)
    assert entry["sample"] == bad and entry["file"] == index.name(bad) and reason in entry["reason"]
    ranks = [stream_of(train_loader(index, rank=rank, world=2), 0, 4) for rank in range(2)]
    assert ranks[0] | ranks[1] == stream


def test_too_many_end_the_run(folders: Path) -> None:
    index = open_pictures(folders)
    for path in sorted(folders.glob("*/*.JPEG"))[:11]:
        path.write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"are bad, more than data.bad_budget=0.01|in a row are bad") as caught:
        list(islice(train_loader(index).steps(0), 4))
    assert "the file is no picture" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_machine_at_its_limit(folders: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """It is not the picture that is bad."""

    def read_bytes(path: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)

    index, data = open_pictures(folders), replace(DATA, workers=workers)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    for batches in (train_loader(index, data).steps(0), PictureEvalLoader(index, data, SIDE, EvalConfig(), 0, 1)):
        with pytest.raises(UserError, match=r"\.JPEG cannot be read: .*ulimit"):
            next(iter(batches))


@pytest.mark.parametrize("world", [1, 2, 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_picture_once(folders: Path, world: int, workers: int) -> None:
    index, data = open_pictures(folders), replace(DATA, workers=workers)
    loaders = [PictureEvalLoader(index, data, SIDE, EvalConfig(batch=2), rank, world) for rank in range(world)]
    ranks = [list(loader) for loader in loaders]
    assert {len(batches) for batches in ranks} == {len(loader) for loader in loaders} == {-(-12 // (2 * world))}
    seen = torch.cat([batch.sample_ids for batches in ranks for batch in batches])
    labels = torch.cat([batch.labels for batches in ranks for batch in batches])
    assert sorted(seen[seen >= 0].tolist()) == list(range(12))
    assert all(
        label == (index.label(s) if s >= 0 else NO_CLASS) for s, label in zip(seen.tolist(), labels, strict=True)
    )


def test_ranks_that_run_out_get_black_pictures(folders: Path) -> None:
    ranks = [
        list(PictureEvalLoader(open_pictures(folders), DATA, SIDE, EvalConfig(batch=4, max_pictures=3), rank, 4))
        for rank in range(4)
    ]
    assert [int(batch.sample_ids[0]) for (batch,) in ranks] == [0, 6, 11, -1]
    (filler,) = ranks[3]
    assert not filler.images.any() and filler.labels.tolist() == filler.positions.tolist() == [-1]


def test_evaluation_leaves_bad_ones_out(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = open_pictures(folders)
    (folders / "n02" / "n02_1.JPEG").write_bytes(b"")
    loader = PictureEvalLoader(index, DATA, SIDE, EvalConfig(batch=5), 0, 1)
    batches = list(loader)
    assert [len(b) for b in batches] == [5, 5, 2] and [b.file for b in loader.bad] == [index.name(5)]
    left_out = batches[1].sample_ids < 0
    assert left_out.tolist() == [True, False, False, False, False] and not batches[1].images[left_out].any()
    assert batches[1].labels[left_out].tolist() == [NO_CLASS] and "left out of the evaluation" in caplog.text


def test_evaluation_counts_the_classes_of_the_training(folders: Path, tmp_path: Path) -> None:
    val = write(tmp_path / "val", {"n10/a.png": jpeg(1), "n02/b.png": jpeg(2)})
    _, rest = open_picture_splits(folders, val=val)
    (batch,) = PictureEvalLoader(rest, DATA, SIDE, EvalConfig(), 0, 1)
    assert batch.labels.tolist() == [1, 2]


def test_real_photographs(data_dir: Path) -> None:
    """SA-1B's format, the masks passed over."""
    index = open_pictures(data_dir / "photos" / "val")
    assert len(index) == 18 and index.classes == []
    batches = list(PictureEvalLoader(index, DataConfig(workers=0), 224, EvalConfig(batch=6), 0, 1))
    assert sum(len(b) for b in batches) == 18 and all(b.images.float().std() > 20 for b in batches)
    batch, _ = next(train_loader(index).steps(0))
    assert batch.labels.tolist() == [NO_CLASS] * 4
    assert len(np.unique(batch.images.numpy())) > 100
