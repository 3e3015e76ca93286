"""Going through a folder: every tar's headers, every loose file's name, and what does not fit together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam_ds.data.tar import DamagedTarError, members


@dataclass(frozen=True)
class Finding:
    """A fault: ``kind`` is truncated, orphan or duplicate."""

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
    """Members of a tar or of the loose files, by name without extension: [offset, size] of jpg and of json."""

    name: str
    shard: int
    members: dict[str, dict[str, tuple[int, int]]]


def scan(root: Path) -> Found:
    """Look through ``root`` and its sub-folders. The order of samples does not depend on the file system."""
    stamps: list[tuple[str, int | None, int]] = []
    loose = _Place(str(root), -1, {})
    findings: list[Finding] = []
    tars: list[str] = []
    for folder, files in _walk(root):
        stamps.append((folder, None, os.stat(root / folder).st_mtime_ns))
        for file in files:
            if file.endswith(".tar"):
                tars.append(os.path.join(folder, file))
            else:
                _add(loose, os.path.join(folder, file), (0, -1), findings)
    places = [loose]
    for shard, tar in enumerate(tars):
        status = os.stat(root / tar)
        stamps.append((tar, status.st_size, status.st_mtime_ns))
        places.append(_read_tar(root, tar, shard, findings))
    rows = list(_pairs(places, findings))
    width = max((len(row[0]) for row in rows), default=1)
    samples = np.array(rows, dtype=_dtype(width))
    return Found(samples, tars, stamps, findings)


def _dtype(stem_bytes: int) -> np.dtype[np.void]:
    return np.dtype(
        [
            ("stem", f"S{stem_bytes}"),  # name without extension, relative to the folder or the tar
            ("shard", "<i4"),  # which tar; -1: loose files
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
            _add(place, os.path.normpath(member.name), (member.offset, member.size), findings)
    except (DamagedTarError, OSError) as error:
        findings.append(Finding("truncated", tar, str(error)))
    return place


def _add(place: _Place, name: str, where: tuple[int, int], findings: list[Finding]) -> None:
    stem, extension = os.path.splitext(name)
    if extension not in (".jpg", ".json"):
        return
    kinds = place.members.setdefault(stem, {})
    if extension in kinds:
        findings.append(Finding("duplicate", place.name, f"{name} is there twice; the first one is used"))
    else:
        kinds[extension] = where


def _pairs(places: list[_Place], findings: list[Finding]) -> Iterator[tuple[bytes, int, int, int, int, int]]:
    seen: dict[str, str] = {}  # picture -> place; the same picture under two folders or in two tars is one picture
    for place in places:
        for stem, kinds in place.members.items():
            if len(kinds) < 2:
                (only,) = kinds
                missing = ".json" if only == ".jpg" else ".jpg"
                findings.append(Finding("orphan", place.name, f"{stem}{only} has no {missing} beside it"))
                continue
            picture = os.path.basename(stem)
            if seen.setdefault(picture, place.name) != place.name:
                findings.append(Finding("duplicate", place.name, f"{stem} is in {seen[picture]} too; that one is used"))
                continue
            (jpg_offset, jpg_size), (json_offset, json_size) = kinds[".jpg"], kinds[".json"]
            yield os.fsencode(stem), place.shard, jpg_size, jpg_offset, json_size, json_offset
