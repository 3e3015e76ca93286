"""Sets that somebody else made: nothing in them leads out of the folder, takes the memory, or stops the reader."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sam_ds.config.schema import DataConfig
from sam_ds.data import reader
from sam_ds.data.index import build_index, open_index
from sam_ds.data.reader import BadSampleError, Reader, decode
from sam_ds.data.samples import parse_runs, usable_masks
from sam_ds.data.tar import DamagedTarError, members

GIB = 1 << 30


@pytest.fixture(autouse=True)
def bounded():
    """Each of these takes neither time nor memory."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def _pack(path: Path, files: list[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
    with tarfile.open(path, "a") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, target, len(content)
            tar.addfile(member, io.BytesIO(content))


def _pair(folder: Path, picture: int = 1) -> tuple[bytes, bytes]:
    return (folder / f"sa_{picture}.jpg").read_bytes(), (folder / f"sa_{picture}.json").read_bytes()


def test_tar_members_stay_inside(loose: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    jpeg, info = _pair(loose)
    for stem in ("sa_1", "../../etc/sa_2", "/etc/sa_3", "a/../../sa_4", "a/../sa_5"):
        _pack(folder / "a.tar", [(f"{stem}.jpg", jpeg), (f"{stem}.json", info)])
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        _pack(folder / "a.tar", [("sa_6.jpg", b""), ("sa_6.json", b"")], kind, "../../etc/passwd")
    report = build_index(folder)
    assert report.counts == {"outside": 6} and all("leads out of the folder" in f.what for f in report.findings)
    index = open_index(folder)
    assert [Path(index.name(i)).name for i in range(len(index))] == ["sa_1.jpg", "sa_5.jpg"]


def test_file_names_in_json_lead_nowhere(loose: Path, change_json) -> None:
    """A picture is the .jpg beside its .json, whatever the .json calls it."""
    index = open_index(loose)
    place = next(i for i in range(len(index)) if index.name(i).endswith("/sa_1.jpg"))
    expected = Reader(index).read(place).jpeg
    for name in ("../../../etc/passwd", "/etc/passwd"):
        change_json(1, lambda info, name=name: info["image"].update(file_name=name))
        assert Reader(index).read(place).jpeg == expected


def test_an_index_that_came_with_the_set_names_its_own_files_only(loose: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    outside = tmp_path / "outside.tar"
    _pack(outside, list(zip(("sa_1.jpg", "sa_1.json"), (b"secret", b"{}"), strict=True)))
    jpeg, info = _pair(loose)
    _pack(folder / "a.tar", [("sa_1.jpg", jpeg), ("sa_1.json", info)])
    (folder / "sa_2.jpg").write_bytes(jpeg)
    (folder / "sa_2.json").write_bytes(info)
    open_index(folder)
    home = folder / ".sam_ds_index"
    header = json.loads((home / "index.json").read_text())
    for change in ({"shards": ["../outside.tar"]}, {"shards": [str(outside)]}, {"table": "../../outside.tar"}):
        (home / "index.json").write_text(json.dumps(header | change))
        index = open_index(folder)
        assert index.shards == ["a.tar"] and {Reader(index).read(i).jpeg for i in range(2)} == {jpeg}
    (tmp_path / "x.jpg").write_bytes(b"secret")
    table = np.load(home / header["table"])
    table["stem"], table["shard"] = b"../x", [-1, 7]
    np.save(home / header["table"], table)
    for sample, reason in ((0, "leads out of the folder"), (1, "its row of the index is damaged")):
        with pytest.raises(BadSampleError, match=reason):
            Reader(open_index(folder)).read(sample)


def test_a_link_is_followed_to_a_file_only(loose: Path, tmp_path: Path) -> None:
    """Sets are shared by links; but a pipe would never end, nor would a device."""
    elsewhere = tmp_path / "elsewhere.jpg"
    shutil.move(loose / "sa_1.jpg", elsewhere)
    (loose / "sa_1.jpg").symlink_to(elsewhere)
    for picture, target in ((2, Path("/dev/zero")), (3, tmp_path)):
        (loose / f"sa_{picture}.jpg").unlink()
        (loose / f"sa_{picture}.jpg").symlink_to(target)
    (loose / "sa_4.json").unlink()
    os.mkfifo(loose / "sa_4.json")
    index = open_index(loose)
    for sample in range(len(index)):
        picture = Path(index.name(sample)).stem
        if picture in ("sa_2", "sa_3", "sa_4"):
            with pytest.raises(BadSampleError, match="is no file"):
                Reader(index).read(sample)
        else:
            assert Reader(index).read(sample).jpeg


@pytest.mark.parametrize("part", ["jpg", "json"])
@pytest.mark.parametrize("tarred", [False, True])
def test_ten_gigabytes(loose: Path, tmp_path: Path, part: str, tarred: bool) -> None:
    """Files with a hole: they take no disk."""
    folder = loose
    if tarred:
        folder = tmp_path / "set"
        folder.mkdir()
        jpeg, info = _pair(loose)
        first, last = (("sa_1.json", info), "sa_1.jpg") if part == "jpg" else (("sa_1.jpg", jpeg), "sa_1.json")
        _pack(folder / "a.tar", [first])
        with (folder / "a.tar").open("r+b") as file:
            member = tarfile.TarInfo(last)
            member.size = 10 * GIB
            file.seek(-(-len(first[1]) // 512) * 512 + 512)
            file.write(member.tobuf(tarfile.GNU_FORMAT))
            file.truncate(file.tell() + member.size + 1024)
    else:
        os.truncate(folder / f"sa_1.{part}", 10 * GIB)
    index = open_index(folder)
    place = next(i for i in range(len(index)) if index.name(i).endswith("/sa_1.jpg"))
    with pytest.raises(BadSampleError, match=rf"its {part} has 10,737,418,240 bytes, at most"):
        Reader(index).read(place)


@pytest.mark.parametrize("kind", [b"x", b"L"])
def test_a_name_of_ten_gigabytes(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("././@LongLink")
    member.size, member.type = 10 * GIB, kind
    path = tmp_path / "a.tar"
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 11 * GIB)
    with pytest.raises(DamagedTarError, match="bytes of name and attributes"):
        list(members(str(path)))


def _sized(height: int, width: int) -> Callable[[dict], None]:
    def change(info: dict) -> None:
        info["image"].update(height=height, width=width)
        for annotation in info["annotations"]:
            annotation["segmentation"]["size"] = [height, width]
            annotation["segmentation"]["counts"] = [height * width]

    return change


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((10**9, 10**9), "not as SA-1B's: size"),
        ((65535, 65535), "it is too large: 65535x65535 pixels, at most 178,956,970 are read"),
        ((1, 65536), "not as SA-1B's: size"),
        ((-5, -5), "not as SA-1B's: size"),
    ],
)
def test_sizes_that_are_declared(loose: Path, change_json, size: tuple[int, int], reason: str) -> None:
    index = open_index(loose)
    place = next(i for i in range(len(index)) if index.name(i).endswith("/sa_1.jpg"))
    change_json(1, _sized(*size))
    with pytest.raises(BadSampleError, match=reason):
        Reader(index).read(place)


@pytest.mark.parametrize("fast", [True, False])
def test_a_small_file_that_would_fill_the_memory(loose: Path, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Header and JSON agree on a size that is just not refused: what does not hold such a picture is damaged."""
    if not fast:
        monkeypatch.setattr(reader, "simplejpeg", None)
    elif reader.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    jpeg = (loose / "sa_1.jpg").read_bytes()
    at = jpeg.index(b"\xff\xc0") + 5
    for side in (65500, 14000):  # Pillow refuses the first
        bomb = jpeg[:at] + side.to_bytes(2, "big") * 2 + jpeg[at + 4 :]
        with pytest.raises(BadSampleError, match="JPEG is damaged"):
            decode(bomb, (side, side), 8)


@pytest.mark.parametrize("counts", ["o" * 100_000, "o" * 9, [2**62] * 4 + [10], [10**30], "0" * 100_000, [0] * 100_000])
def test_runs_that_expand_without_bound(loose: Path, change_json, counts: object) -> None:
    index = open_index(loose)
    place = next(i for i in range(len(index)) if index.name(i).endswith("/sa_1.jpg"))
    change_json(1, lambda info: [a["segmentation"].update(counts=counts) for a in info["annotations"]])
    raw = Reader(index).read(place)
    with pytest.raises(BadSampleError, match="the RLE of its mask"):
        parse_runs(raw, usable_masks(raw, DataConfig()).ids)
