"""Going through a folder: every tar's headers, every loose file's name, and what does not fit together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam_ds.data.limits import raise_if_of_machine
from sam_ds.data.tar import DamagedTarError, members

LOOSE = -1  # the shard of a sample in loose files


@dataclass(frozen=True)
class Finding:
    """A fault: ``kind`` is truncated, orphan, duplicate or outside."""

    kind: str
    place: str  # the tar, or the folder
    what: str  # the member and what is wrong with it


@dataclass(frozen=True)
class Found:
    samples: npt.NDArray[np.void]
    shards: list[str]  # tars, relative to the folder
    stamps: list[tuple[str, int | None, int]]  # path, size if it is a tar, time in ns
    findings: list[Finding]


@dataclass
class _Place:
    """Members of a tar, or the loose files: for every name without extension, [offset, size] by extension."""

    name: str
    shard: int
    members: dict[str, dict[str, tuple[int, int]]]


def scan(root: Path, tell: Callable[[str], None] | None = None) -> Found:
    """Look through ``root`` and its sub-folders. The order of samples does not depend on the file system.

    ``tell`` hears of every folder and every tar when it is come to.
    """
    tell = tell or (lambda place: None)
    stamps: list[tuple[str, int | None, int]] = []
    loose = _Place(str(root), LOOSE, {})
    findings: list[Finding] = []
    tars: list[str] = []
    for folder, files in _walk(root):
        tell(f"indexing {root / folder}")
        stamps.append((folder, None, os.stat(root / folder).st_mtime_ns))
        for file in files:
            if file.endswith(".tar"):
                tars.append(os.path.join(folder, file))
            else:
                _add(loose, os.path.join(folder, file), (0, -1), findings)
    tables = [_table(loose, findings)]
    for shard, tar in enumerate(tars):
        tell(f"indexing {root / tar}")
        status = os.stat(root / tar)
        stamps.append((tar, status.st_size, status.st_mtime_ns))
        tables.append(_table(_read_tar(root, tar, shard, findings), findings))
    samples = _without_duplicates(np.concatenate(tables), tars, findings)
    return Found(samples, tars, stamps, findings)


def row_dtype(stem_bytes: int) -> np.dtype[np.void]:
    """Of a sample in the index."""
    return np.dtype(
        [
            ("stem", f"S{stem_bytes}"),  # name without extension, relative to the folder or the tar
            ("shard", "<i4"),  # which tar, or LOOSE
            ("jpg_size", "<i8"),  # bytes; -1: the whole file
            ("jpg_offset", "<i8"),
            ("json_size", "<i8"),
            ("json_offset", "<i8"),
        ]
    )


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Folders and their files, both by name, hidden ones left out."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        relative = os.path.relpath(folder, root)
        yield "" if relative == "." else relative, sorted(f for f in files if not f.startswith("."))


def _read_tar(root: Path, tar: str, shard: int, findings: list[Finding]) -> _Place:
    place = _Place(tar, shard, {})
    try:
        for member in members(str(root / tar)):
            name = os.path.normpath(member.name)
            if leads_outside(name):
                findings.append(Finding("outside", tar, f"{member.name} leads out of the folder; it is left out"))
            else:
                _add(place, name, (member.offset, member.size), findings)
    except (DamagedTarError, OSError) as error:
        if isinstance(error, OSError):
            raise_if_of_machine(error, str(root / tar))
        findings.append(Finding("truncated", tar, str(error)))
    return place


def leads_outside(name: str) -> bool:
    """Whether a path, once joined to a folder, may lie elsewhere."""
    return os.path.isabs(name) or ".." in name.split("/")


def _add(place: _Place, name: str, where: tuple[int, int], findings: list[Finding]) -> None:
    stem, extension = os.path.splitext(name)
    if extension not in (".jpg", ".json"):
        return
    kinds = place.members.setdefault(stem, {})
    if extension in kinds:
        findings.append(Finding("duplicate", place.name, f"{name} is there twice; the first one is used"))
    else:
        kinds[extension] = where


def _table(place: _Place, findings: list[Finding]) -> npt.NDArray[np.void]:
    """The rows of a place's whole pairs; its names need not stay in memory after it."""
    rows = []
    for stem, kinds in place.members.items():
        if len(kinds) < 2:
            (only,) = kinds
            missing = ".json" if only == ".jpg" else ".jpg"
            findings.append(Finding("orphan", place.name, f"{stem}{only} has no {missing} beside it"))
            continue
        (jpg_offset, jpg_size), (json_offset, json_size) = kinds[".jpg"], kinds[".json"]
        rows.append((os.fsencode(stem), place.shard, jpg_size, jpg_offset, json_size, json_offset))
    return np.array(rows, row_dtype(max((len(row[0]) for row in rows), default=1)))


def _without_duplicates(
    samples: npt.NDArray[np.void], tars: list[str], findings: list[Finding]
) -> npt.NDArray[np.void]:
    """Without pictures that an earlier tar, or a loose file, has under the same name.

    Loose files of one name in two folders are two pictures.
    """
    _, first, group = np.unique(name_hashes(samples["stem"]), return_index=True, return_inverse=True)
    earlier = first[group]  # the first row of the same name
    again = samples["shard"] != samples["shard"][earlier]
    for row in np.flatnonzero(again):
        other = samples["shard"][earlier[row]]
        where = "the loose files" if other == LOOSE else tars[other]
        what = f"{os.fsdecode(bytes(samples['stem'][row]))} is in {where} too; that one is used"
        findings.append(Finding("duplicate", tars[samples["shard"][row]], what))
    kept: npt.NDArray[np.void] = samples[~again]
    return kept


def name_hashes(stems: npt.NDArray[np.bytes_]) -> npt.NDArray[np.uint64]:
    """FNV-1a of every name, without its folder and its zero padding, all names at once."""
    characters = np.ascontiguousarray(stems).view(np.uint8).reshape(len(stems), stems.itemsize)
    hashes = np.full(len(stems), 0xCBF29CE484222325, np.uint64)
    for column in characters.T:
        hashes = np.where(column == 0, hashes, (hashes ^ column) * np.uint64(0x100000001B3))
        hashes[column == ord("/")] = 0xCBF29CE484222325
    folded: npt.NDArray[np.uint64] = hashes ^ (hashes >> np.uint64(32))
    return folded
