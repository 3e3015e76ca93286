"""The index finds what is there, in tars and in folders, and says what does not fit together."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
from errno import EMFILE
from pathlib import Path

import numpy as np
import pytest

from sam_ds.config.errors import UserError
from sam_ds.data import scan
from sam_ds.data.index import build_index, open_index, open_splits
from sam_ds.data.reader import Reader
from sam_ds.data.tar import DamagedTarError, members


def _pack(tar: Path, files: list[tuple[str, bytes]], **options) -> None:
    with tarfile.open(tar, "w", **options) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _files(folder: Path, picture: int) -> list[tuple[str, bytes]]:
    return [(f"./sa_{picture}.{kind}", (folder / f"sa_{picture}.{kind}").read_bytes()) for kind in ("jpg", "json")]


@pytest.fixture
def tars(loose: Path, tmp_path: Path) -> Path:
    """Two tars: pictures 1 to 6 side by side, 7 to 12 with all jpgs before all jsons."""
    folder = tmp_path / "tars"
    folder.mkdir()
    _pack(folder / "sa_000000.tar", [f for p in range(1, 7) for f in _files(loose, p)])
    pairs = [_files(loose, p) for p in range(7, 13)]
    _pack(folder / "sa_000001.tar", [jpg for jpg, _ in pairs] + [json for _, json in pairs])
    return folder


def _annotations(index) -> dict[str, list]:
    reader = Reader(index)
    return {Path(index.name(i)).stem: reader.read(i).annotations for i in range(len(index))}


def test_tars_and_folders_hold_the_same(loose: Path, tars: Path) -> None:
    from_files, from_tars = open_index(loose), open_index(tars)
    assert len(from_files) == len(from_tars) == 12
    assert _annotations(from_files) == _annotations(from_tars)
    assert from_tars.name(0) == f"{tars.resolve()}/sa_000000.tar/sa_1.jpg"
    assert not build_index(tars).findings


def test_report_of_faults(loose: Path, tars: Path) -> None:
    with open(tars / "sa_000001.tar", "r+b") as file:  # within the last json
        last = list(members(str(tars / "sa_000001.tar")))[-1]
        file.truncate(last.offset + last.size // 2)
    _pack(tars / "sa_000002.tar", [*_files(loose, 3), _files(loose, 4)[0], *_files(loose, 5)])
    twice = _files(loose, 12)
    _pack(tars / "sa_000003.tar", [("./sa_99.jpg", twice[0][1]), ("./sa_99.json", twice[1][1]), ("sa_99.json", b"{}")])
    report = build_index(tars)
    found = {(f.kind, f.place, f.what.split()[0]) for f in report.findings}
    assert found == {
        ("truncated", "sa_000001.tar", "ends"),
        ("orphan", "sa_000001.tar", "sa_12.jpg"),
        ("duplicate", "sa_000002.tar", "sa_3"),
        ("orphan", "sa_000002.tar", "sa_4.jpg"),
        ("duplicate", "sa_000002.tar", "sa_5"),
        ("duplicate", "sa_000003.tar", "sa_99.json"),
    }
    assert report.counts == {"truncated": 1, "orphan": 2, "duplicate": 3}
    assert report.samples == len(open_index(tars)) == 12
    assert "12 pictures with masks, 4 tars, 3 duplicate, 2 orphan, 1 truncated" in str(report)


def test_who_waits_hears_how_far_it_is(tars: Path) -> None:
    told: list[str] = []
    open_index(tars, told.append)
    names = ("", "/sa_000000.tar", "/sa_000001.tar")
    assert told == [f"indexing {tars.resolve()}{name}" for name in names]
    open_index(tars, told.append)
    assert len(told) == len(names)  # it is there


def test_orphans_among_files(loose: Path) -> None:
    (loose / "sa_1.json").unlink()
    (loose / "sa_2.jpg").unlink()
    (loose / "notes.txt").write_text("not a picture")
    report = build_index(loose)
    assert report.samples == 10 and report.counts == {"orphan": 2}
    assert [f.what for f in report.findings] == ["sa_1.jpg has no .json beside it", "sa_2.json has no .jpg beside it"]


def test_sub_folders(loose: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(loose, root / "a")
    shutil.copytree(loose, root / "b")
    index = open_index(root)
    assert len(index) == 24  # the same name in two folders is two pictures
    assert {Path(index.name(i)).parent.name for i in range(24)} == {"a", "b"}
    assert Reader(index).read(23).annotations


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_formats_and_long_names(tmp_path: Path, tar_format: int) -> None:
    names = ["./sa_1.jpg", f"./{'d' * 90}/{'e' * 60}.jpg", "sa_2.json"]
    if tar_format != tarfile.USTAR_FORMAT:
        names += [f"./{'long' * 60}.jpg", f"./{'ü' * 70}.jpg"]
    contents = [bytes([65 + i]) * (511 + i) for i in range(len(names))]
    _pack(tmp_path / "x.tar", list(zip(names, contents, strict=True)), format=tar_format)
    found = list(members(str(tmp_path / "x.tar")))
    assert [m.name for m in found] == names
    raw = (tmp_path / "x.tar").read_bytes()
    assert [raw[m.offset : m.offset + m.size] for m in found] == contents


def test_damaged_tars(tmp_path: Path) -> None:
    _pack(tmp_path / "x.tar", [("a.jpg", b"1" * 1000), ("b.jpg", b"2" * 1000)])
    whole = (tmp_path / "x.tar").read_bytes()
    first, second = members(str(tmp_path / "x.tar"))
    for content, reason in [
        (whole[: second.offset - 512], "without an end mark"),
        (whole[: second.offset + 10], "within b.jpg"),
        (whole[: second.offset - 512] + b"x" * 512 + whole[second.offset :], "is damaged"),
    ]:
        (tmp_path / "y.tar").write_bytes(content)
        walk = members(str(tmp_path / "y.tar"))
        assert next(walk) == first
        with pytest.raises(DamagedTarError, match=reason):
            next(walk)


def _damage(tar: Path, offset: int, content: bytes) -> None:
    with open(tar, "r+b") as file:
        file.seek(offset)
        file.write(content)


@pytest.mark.parametrize(
    "body",
    [bytes(20), b"garbage", b"0 path=x\n", b"1 path=x\n", b"-9 path=x\n", b"9 pathxxx\n", b"99 path=x\n"],
    ids=repr,
)
def test_damaged_pax_header(tmp_path: Path, body: bytes) -> None:
    _pack(tmp_path / "x.tar", [("a.jpg", b"1"), ("ü.jpg", b"2")], format=tarfile.PAX_FORMAT)
    first, second = members(str(tmp_path / "x.tar"))
    _damage(tmp_path / "x.tar", second.offset - 1024, body.ljust(20, b"0"))
    walk = members(str(tmp_path / "x.tar"))
    assert next(walk) == first
    with pytest.raises(DamagedTarError, match=f"pax header at byte {second.offset - 1024} is damaged"):
        next(walk)


@pytest.mark.parametrize("size", ["-512", "x", "9" * 5000])
def test_damaged_pax_size(tmp_path: Path, size: str) -> None:
    """One below 0 would send the walk back to where it was."""
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a.jpg")
        member.pax_headers = {"size": size}
        archive.addfile(member)
    with pytest.raises(DamagedTarError, match="is damaged: it has no size"):
        list(members(str(tmp_path / "x.tar")))


def test_damaged_pax_header_is_reported(tars: Path, loose: Path) -> None:
    _pack(tars / "sa_000002.tar", [("ü.jpg", b"1"), *_files(loose, 1)], format=tarfile.PAX_FORMAT)
    _damage(tars / "sa_000002.tar", 512, b"0 path=x")
    report = build_index(tars)
    assert report.samples == 12 and [(f.kind, f.place) for f in report.findings] == [("truncated", "sa_000002.tar")]


def test_hole_of_zeros(tars: Path) -> None:
    """Zeros over a header look like the tar's end; the members behind them must not be lost in silence."""
    fourth = list(members(str(tars / "sa_000000.tar")))[6]
    _damage(tars / "sa_000000.tar", fourth.offset - 512, bytes(512))
    report = build_index(tars)
    assert report.samples == 9
    (finding,) = report.findings
    assert (finding.kind, finding.place) == ("truncated", "sa_000000.tar")
    assert f"zeros for a header at byte {fourth.offset - 512}" in finding.what


@pytest.mark.parametrize("padding", [bytes(1 << 21), b"x" * 5000])
def test_padding_is_no_hole(tmp_path: Path, padding: bytes) -> None:
    _pack(tmp_path / "x.tar", [("a.jpg", b"1" * 1000)])
    end = 512 + 1024
    content = (tmp_path / "x.tar").read_bytes()[:end] + bytes(1024) + padding
    (tmp_path / "x.tar").write_bytes(content)
    assert len(list(members(str(tmp_path / "x.tar")))) == 1


def test_scan_at_the_limit_of_open_files(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index without the tar that could not be opened just then would be kept."""

    def members(path: str):
        raise OSError(EMFILE, os.strerror(EMFILE), path)

    monkeypatch.setattr(scan, "members", members)
    with pytest.raises(UserError, match=r"sa_000000.tar cannot be read: .*ulimit"):
        build_index(tars)


def test_open_files_are_few(loose: Path, tmp_path: Path) -> None:
    def opened() -> int:
        return sum(os.path.realpath(f"/proc/self/fd/{fd}").endswith(".tar") for fd in os.listdir("/proc/self/fd"))

    folder = tmp_path / "many"
    folder.mkdir()
    jpg, info = (content for _, content in _files(loose, 1))
    for number in range(80):
        _pack(folder / f"{number:02}.tar", [(f"sa_{number}.jpg", jpg), (f"sa_{number}.json", info)])
    index = open_index(folder)
    before, reader = opened(), Reader(index)
    for sample in [*range(80), *range(80)]:
        assert reader.read(sample).jpeg == jpg
    assert 0 < opened() - before <= 64
    del reader
    assert opened() == before


def test_index_is_kept_and_renewed(tars: Path, loose: Path) -> None:
    first = open_index(tars)
    header = tars / ".sam_ds_index" / "index.json"
    written = header.stat().st_mtime_ns
    assert len(open_index(tars)) == 12 and header.stat().st_mtime_ns == written
    (tars / "sa_000001.tar").unlink()
    assert len(open_index(tars)) == 6
    _pack(tars / "sa_000001.tar", _files(loose, 7))
    assert len(open_index(tars)) == 7
    (tars / ".sam_ds_index" / "index.json").write_text("{")
    assert len(open_index(tars)) == 7
    assert len(first) == 12  # an open one stays whole


def test_folder_that_cannot_be_written(loose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real_mkdir = Path.mkdir

    def mkdir(path: Path, *args, **kwargs) -> None:
        if path.name == ".sam_ds_index":
            raise PermissionError(path)
        real_mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert len(open_index(loose)) == 12
    assert not (loose / ".sam_ds_index").exists()
    assert len(list((tmp_path / "cache" / "sam_ds").glob("*/index.json"))) == 1


def test_pickled_index_carries_no_table(tars: Path) -> None:
    index = open_index(tars)
    pickled = pickle.dumps(index)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    assert isinstance(copy.samples, np.memmap) and [copy.name(i) for i in range(12)] == [
        index.name(i) for i in range(12)
    ]


def test_splits_by_folder(drawn: Path) -> None:
    train, val = open_splits(str(drawn))
    assert (len(train), len(val)) == (12, 2)


def test_hold_out_does_not_depend_on_the_layout(loose: Path, tars: Path) -> None:
    def names(index) -> set[str]:
        return {Path(index.name(i)).name for i in range(len(index))}

    (train, val), (tar_train, tar_val) = open_splits(str(loose)), open_splits(str(tars))
    assert (len(train), len(val)) == (11, 1) and not names(train) & names(val)
    assert names(val) == names(tar_val) and names(train) == names(tar_train)


def test_users_mistakes(tmp_path: Path, loose: Path) -> None:
    with pytest.raises(UserError, match=r"there is no data folder .*nowhere"):
        open_splits(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="is not a folder"):
        open_splits(str(loose / "sa_1.jpg"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no picture with masks in .*empty"):
        open_splits(str(tmp_path / "empty"))
    for path in sorted(loose.glob("sa_*"))[2:]:
        os.remove(path)
    with pytest.raises(UserError, match="single picture"):
        open_splits(str(loose))


def test_fingerprints_tell_sets_apart_but_not_places(drawn: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(drawn / "train", copy, ignore=shutil.ignore_patterns(".*"))
    first = open_index(drawn / "train")
    assert open_index(copy).fingerprint() == first.fingerprint()
    (copy / "sa_1.jpg").unlink()
    assert open_index(copy).fingerprint() != first.fingerprint()
    assert first.subset(np.arange(3)).fingerprint() != first.fingerprint()
