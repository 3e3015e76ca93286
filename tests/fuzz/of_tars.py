"""Tars with wrong headers, and the index that was made of one."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from random import Random

from sam_ds.config.errors import UserError
from sam_ds.data.index import open_index
from sam_ds.data.reader import BadSampleError, Reader
from sam_ds.data.scan import scan
from sam_ds.data.tar import DamagedTarError, members
from tests.fuzz.mutate import json_case, other_bytes

_BLOCK = 512
_NAMES = (
    "./sa_1.jpg", "./sa_1.json", "sa_2.jpg", "sa_2.json", "deep/er/sa_3.jpg", "deep/er/sa_3.json",
    "../../etc/sa_4.jpg", "../../etc/sa_4.json", "/etc/sa_5.jpg", "/etc/sa_5.json",
    "n" * 150 + ".jpg", "n" * 150 + ".json", "p/" * 90 + "sa_6.jpg", "p/" * 90 + "sa_6.json", "é\udcff.jpg",
    "a/../../sa_7.jpg", "a/../../sa_7.json", ".jpg", "..json", "notes.txt",
)  # fmt: skip
_KINDS = (tarfile.REGTYPE,) * 12 + (
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.DIRTYPE,
    tarfile.CHRTYPE,
    tarfile.FIFOTYPE,
)
_SIZES = (b"77777777777\0", b"00000000000\0", b"            ", b"-0000000001\0", b"9\0",
          b"\x80" + bytes(3) + b"\xff" * 8, b"\xff" * 12,
          b"\x80" + bytes(7) + b"\0\0\x02\0", b"00000001000\0")  # fmt: skip
_KIND_BYTES = b"0\0" + b"1234567LKSxgNXM\xff"


def _tar(rng: Random) -> bytes:
    out = io.BytesIO()
    form = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    first = rng.randrange(len(_NAMES))
    with tarfile.open(fileobj=out, mode="w", format=form, errors="surrogateescape") as tar:
        for place in range(rng.randrange(1, 6)):
            member = tarfile.TarInfo(_NAMES[(first + place) % len(_NAMES)])
            member.type = rng.choice(_KINDS)
            content = b"x" * rng.choice((0, 1, 511, 512, 513)) if member.type == tarfile.REGTYPE else b""
            member.size, member.linkname = len(content), "../../etc/passwd"
            if form == tarfile.PAX_FORMAT and rng.random() < 0.3:
                key = rng.choice(("path", "size", "comment", "GNU.sparse.size"))
                member.pax_headers = {key: rng.choice(("1", "99999999999", "../x.jpg", "-1", "٣", ""))}
            try:
                tar.addfile(member, io.BytesIO(content))
            except (ValueError, UnicodeError):  # a name that this form cannot hold
                continue
    return out.getvalue()


def _with_field(rng: Random, content: bytes) -> bytes:
    """Another size, kind or name in a header, and the checksum that goes with it."""
    blocks = len(content) // _BLOCK
    at = rng.randrange(max(1, min(blocks, 12))) * _BLOCK
    header = bytearray(content[at : at + _BLOCK])
    if len(header) < _BLOCK:
        return content
    field = rng.randrange(4)
    if field == 0:
        header[124:136] = rng.choice(_SIZES)
    elif field == 1:
        header[156] = rng.choice(_KIND_BYTES)
    elif field == 2:
        header[rng.randrange(100)] = rng.choice(b"/.\0\xffa")
    else:
        header[257:263] = rng.choice((b"ustar\0", b"ustar ", b"\0" * 6))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:at] + bytes(header) + content[at + _BLOCK :]


class Tar:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "a.tar"

    def draw(self, rng: Random) -> bytes:
        content = _tar(rng)
        way = rng.randrange(6)
        if way in (1, 2, 3):
            for _ in range(rng.randrange(1, 3)):
                content = _with_field(rng, content)
        if way in (3, 4):
            content = other_bytes(rng, content)
        if way == 5:
            content = content[: rng.randrange(len(content) + 1)]
        return content

    def check(self, case: bytes) -> bool:
        self._path.write_bytes(case)
        whole, count = True, 0
        try:
            for member in members(str(self._path)):
                count += 1
                assert member.offset >= _BLOCK and member.offset % _BLOCK == 0 and member.size >= 0
                assert member.offset + member.size <= len(case) and count <= len(case) // _BLOCK
        except DamagedTarError as error:
            assert str(error)
            whole = False
        found = scan(self._folder)
        assert len(found.samples) <= count // 2
        for row in found.samples:
            name = os.fsdecode(bytes(row["stem"]))
            assert not os.path.isabs(name) and ".." not in name.split("/"), name
        return whole


class IndexFile:
    """The index that lies beside the data, which came with it and may be anyone's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "data"
        self._folder.mkdir(exist_ok=True)
        outside = json.dumps({"image": {"height": 8, "width": 8}, "annotations": ["outside"]})
        (folder / "outside.json").write_text(outside)
        (folder / "outside.jpg").write_bytes(b"outside")
        with tarfile.open(self._folder / "a.tar", "w") as tar:
            for name in ("sa_1.jpg", "sa_1.json", "sa_2.jpg", "sa_2.json"):
                content = outside.replace("outside", "inside").encode()
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        shutil.copy(self._folder / "a.tar", folder / "outside.tar")
        open_index(self._folder)
        self._home = self._folder / ".sam_ds_index"
        self._header = json.loads((self._home / "index.json").read_text())
        self._table = (self._home / self._header["table"]).read_bytes()

    def draw(self, rng: Random) -> tuple[bytes, bytes]:
        header = dict(self._header)
        if rng.random() < 0.3:
            header["shards"] = [rng.choice(("../outside.tar", str(self._folder.parent / "outside.tar"), "b.tar", ""))]
        table = other_bytes(rng, self._table) if rng.random() < 0.6 else self._table
        if rng.random() < 0.3:
            table = table.replace(b"sa_1", b"../outside"[:4])
        return json_case(rng, [header]), table

    def check(self, case: tuple[bytes, bytes]) -> bool:
        (self._home / self._header["table"]).write_bytes(case[1])
        (self._home / "index.json").write_bytes(case[0])
        try:
            index = open_index(self._folder)
            reader, whole = Reader(index), True
            for sample in range(min(len(index), 4)):
                assert str(self._folder) in index.name(sample)
                try:
                    assert reader.read(sample).annotations == ["inside"]
                except BadSampleError as error:
                    assert str(error)
                    whole = False
            return whole
        except UserError as error:
            assert str(error)
            return False
