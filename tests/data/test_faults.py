"""Storage that is slow, files that go and reads that fail while a training runs."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import tarfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from sam_ds.config.errors import UserError
from sam_ds.data import workers
from sam_ds.data.index import Index, open_index
from tests.data.streams import DATA, stream_of, train_loader

SLOW_READ = 0.7  # seconds


def test_slow_storage_keeps_the_order(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some reads take longer than many looks at the workers; who waits is told once a wait."""
    expected = stream_of(train_loader(drawn / "train", replace(DATA, workers=0)), 6)
    whole = Path.read_bytes

    def slow(path: Path) -> bytes:
        time.sleep(SLOW_READ if path.name in ("sa_3.jpg", "sa_8.json") else 0)
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", slow)
    monkeypatch.setattr(workers, "_TICK", 0.05)
    monkeypatch.setattr(workers, "_SLOW", 5)
    assert stream_of(train_loader(drawn / "train"), 6) == expected
    told = [r.getMessage() for r in caplog.records]
    assert told and all("storage is slow" in line for line in told) and len(told) <= 6


def _expect_substitutes(
    index: Index, record: Path, bad: set[str], reason: str, ranks: list[list[tuple[list[int], bytes, bytes]]]
) -> None:
    """Of two ranks: the same pictures as of one, none of them bad, each bad one named once with its reason."""
    names = {i: Path(index.name(i)).name for i in range(len(index))}
    alone = stream_of(train_loader(index, replace(DATA, workers=0)), len(ranks[0]))
    for step, (whole, *parts) in enumerate(zip(alone, *ranks, strict=True)):
        samples = [parts[place % 2][0][place // 2] for place in range(4)]
        assert samples == whole[0] and not bad & {names[s] for s in samples}, step
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert {Path(line["file"]).name for line in lines} == bad and len(lines) <= 2 * len(bad)
    assert all(re.search(reason, line["reason"]) for line in lines)


def test_files_that_go_while_it_runs(loose: Path, tmp_path: Path) -> None:
    """From the moment they are gone others take their place, the same for any number of ranks."""
    record, index = tmp_path / "quarantine.jsonl", open_index(loose)
    streams = [train_loader(index, rank=rank, world=2).steps(0) for rank in range(2)]
    for stream in streams:
        next(stream)
    (loose / "sa_3.jpg").unlink()
    (loose / "sa_9.json").unlink()
    for stream in streams:
        list(islice(stream, 2 * workers._AHEAD))  # those that were made before
    ranks = [stream_of(train_loader(index, rank=rank, world=2, record=record), 9) for rank in range(2)]
    _expect_substitutes(index, record, {"sa_3.jpg", "sa_9.jpg"}, "cannot be read: No such file", ranks)


@pytest.mark.parametrize("place", ["loose", "tar"])
def test_reads_that_fail(loose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    folder, record = loose, tmp_path / "quarantine.jsonl"
    bad, whole_read, whole_pread = {"sa_2.jpg", "sa_5.jpg"}, Path.read_bytes, os.pread
    if place == "tar":
        folder = _tarred(loose, tmp_path / "tars")
    index = open_index(folder)
    offsets = {int(index[i]["jpg_offset"]) for i in range(len(index)) if Path(index.name(i)).name in bad}

    def read_bytes(path: Path) -> bytes:
        if path.name in bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole_read(path)

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        if offset in offsets:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole_pread(descriptor, size, offset)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(os, "pread", pread)
    ranks = [stream_of(train_loader(index, rank=rank, world=2, record=record), 9) for rank in range(2)]
    _expect_substitutes(index, record, bad, "cannot be read: Input/output error", ranks)


def _tarred(loose: Path, folder: Path) -> Path:
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for path in sorted(loose.glob("sa_*")):
            tar.add(path, f"./{path.name}")
    return folder


def test_a_tar_is_opened_again_after_a_failed_read(
    loose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server forgot the open file: one picture is bad, not all of the tar from then on."""
    folder, opened, whole_open, whole_pread = _tarred(loose, tmp_path / "tars"), [], os.open, os.pread
    loader = train_loader(folder, replace(DATA, workers=0))

    def open_(path: Path, flags: int) -> int:
        opened.append(path)
        return whole_open(path, flags)

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        if len(opened) < 2:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return whole_pread(descriptor, size, offset)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "pread", pread)
    stream_of(loader, 6)
    assert [bad.reason for bad in loader.quarantine.bad.values()] == ["cannot be read: Stale file handle"]


def test_storage_that_fails_altogether_ends_the_run(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_bytes(path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    loader = train_loader(drawn / "train")
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(UserError, match=r"are bad.*cannot be read: Input/output error") as caught:
        list(islice(loader.steps(0), 20))
    assert "\n" not in str(caught.value)


def test_a_record_that_cannot_be_written_costs_no_training(
    loose: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (loose / "sa_4.jpg").write_bytes(b"")
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        seen = stream_of(train_loader(loose, record=tmp_path / "file" / "quarantine.jsonl"), 6)
    assert len(seen) == 6
    (line,) = [r.getMessage() for r in caplog.records]
    assert "quarantine.jsonl cannot be written" in line and "sa_4.jpg" in line
