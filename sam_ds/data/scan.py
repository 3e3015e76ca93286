"""Going through a folder: every tar's headers, every loose file's name, and what does not fit together."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sam_ds.data.limits import raise_if_of_machine
from sam_ds.data.tar import DamagedTarError, members

LOOSE = -1  # the shard of a sample in loose files
_MOST_TEXT = 256  # bytes of a file that says a class
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_PICTURES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class Finding:
    """A fault: ``kind`` is truncated, orphan, duplicate, outside, link, compressed or empty."""

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
class Place:
    """A tar, or the loose files of a folder: where every file lies, in their order."""

    name: str  # the tar, or the root of the set
    shard: int
    folder: str  # of the loose files or of the tar, relative to the root; empty for the root itself
    files: list[tuple[str, int, int]]  # name (of loose files relative to the root), offset, size
    texts: dict[str, bytes] = field(default_factory=dict)  # content of a tar's files that the gatherer wants read


class Gather(Protocol):
    """What makes samples of files."""

    reads: tuple[str, ...]  # extensions of a tar's files whose content counts

    def rows(self, place: Place, findings: list[Finding]) -> npt.NDArray[np.void]:
        """The samples of a place; its names need not stay in memory after it."""
        ...

    def finish(self, samples: npt.NDArray[np.void], shards: list[str], findings: list[Finding]) -> npt.NDArray[np.void]:
        """The samples of all places, once they are known."""
        ...

    def what(self) -> str:
        """What was found, in the plural, for people."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the header of the index says beside the table."""
        ...


def scan(root: Path, tell: Callable[[str], None] | None = None, gather: Gather | None = None) -> Found:
    """Look through ``root`` and its sub-folders. The order of samples does not depend on the file system.

    Args:
        tell: hears of every folder and every tar when it is come to.
        gather: what is looked for; by default SA-1B's pairs.
    """
    tell, gather = tell or (lambda place: None), gather or Pairs()
    stamps: list[tuple[str, int | None, int]] = []
    findings: list[Finding] = []
    tars: list[str] = []
    tables: list[npt.NDArray[np.void]] = []
    for folder, files, links in walk(root):
        tell(f"indexing {root / folder}")
        stamps.append((folder, None, os.stat(root / folder).st_mtime_ns))
        findings += [
            Finding("link", os.path.join(folder, name), "is a link to a folder: not followed") for name in links
        ]
        packed = [os.path.join(folder, file) for file in files if file.lower().endswith(_COMPRESSED)]
        findings += [Finding("compressed", tar, "is compressed, and left out: decompress it") for tar in packed]
        tars += [os.path.join(folder, file) for file in files if file.endswith(".tar")]
        loose = [(os.path.join(folder, file), 0, -1) for file in files if not file.endswith(".tar")]
        tables.append(gather.rows(Place(str(root), LOOSE, folder, loose), findings))
    for shard, tar in enumerate(tars):
        tell(f"indexing {root / tar}")
        status = os.stat(root / tar)
        stamps.append((tar, status.st_size, status.st_mtime_ns))
        tables.append(gather.rows(_read_tar(root, tar, shard, gather.reads, findings), findings))
    samples = gather.finish(np.concatenate(tables), tars, findings)
    return Found(samples, tars, stamps, findings)


class Pairs:
    """SA-1B's samples: a .jpg and the .json of the same name beside it."""

    reads: tuple[str, ...] = ()

    def rows(self, place: Place, findings: list[Finding]) -> npt.NDArray[np.void]:
        """The rows of a place's whole pairs."""
        pairs: dict[str, dict[str, tuple[int, int]]] = {}
        for name, offset, size in without_repeats(place, lambda name: name.endswith((".jpg", ".json")), findings):
            stem, extension = os.path.splitext(name)
            pairs.setdefault(stem, {})[extension] = (offset, size)
        rows = []
        for stem, kinds in pairs.items():
            if len(kinds) < 2:
                (only,) = kinds
                missing = ".json" if only == ".jpg" else ".jpg"
                findings.append(Finding("orphan", place.name, f"{stem}{only} has no {missing} beside it"))
                continue
            (jpg_offset, jpg_size), (json_offset, json_size) = kinds[".jpg"], kinds[".json"]
            rows.append((os.fsencode(stem), place.shard, jpg_size, jpg_offset, json_size, json_offset))
        return np.array(rows, row_dtype(max((len(row[0]) for row in rows), default=1)))

    def finish(self, samples: npt.NDArray[np.void], shards: list[str], findings: list[Finding]) -> npt.NDArray[np.void]:
        """Without pictures that an earlier tar, or a loose file, has under the same name.

        Loose files of one name in two folders are two pictures.
        """
        hashes = name_hashes(samples["stem"], extensions=False)
        _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
        earlier = first[group]  # the first row of the same name
        again = samples["shard"] != samples["shard"][earlier]
        for row in np.flatnonzero(again):
            other = samples["shard"][earlier[row]]
            where = "the loose files" if other == LOOSE else shards[other]
            what = f"{os.fsdecode(bytes(samples['stem'][row]))} is in {where} too; that one is used"
            findings.append(Finding("duplicate", shards[samples["shard"][row]], what))
        kept: npt.NDArray[np.void] = samples[~again]
        return kept

    def what(self) -> str:
        return "pictures with masks"

    def facts(self) -> dict[str, Any]:
        return {}


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


def walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Folders, their files and those of their folders that are links, all by name, hidden ones left out."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        links = [f for f in folders if os.path.islink(os.path.join(folder, f))]
        relative = os.path.relpath(folder, root)
        yield "" if relative == "." else relative, sorted(f for f in files if not f.startswith(".")), links


def _read_tar(root: Path, tar: str, shard: int, reads: tuple[str, ...], findings: list[Finding]) -> Place:
    place = Place(tar, shard, os.path.dirname(tar), [])
    try:
        with open(root / tar, "rb") as file:
            for member in members(str(root / tar)):
                name = os.path.normpath(member.name)
                if leads_outside(name):
                    findings.append(Finding("outside", tar, f"{member.name} leads out of the folder; it is left out"))
                    continue
                if _is_hidden(name):
                    continue
                place.files.append((name, member.offset, member.size))
                if reads and name.endswith(reads) and member.size <= _MOST_TEXT:
                    place.texts[name] = os.pread(file.fileno(), member.size, member.offset)
    except (DamagedTarError, OSError) as error:
        if isinstance(error, OSError):
            raise_if_of_machine(error, str(root / tar))
        findings.append(Finding("truncated", tar, str(error)))
    return place


def is_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture, however that is spelt: .jpg, .JPG, .Jpg."""
    return name.lower().endswith(_PICTURES)


def without_repeats(
    place: Place, wanted: Callable[[str], bool], findings: list[Finding]
) -> Iterator[tuple[str, int, int]]:
    """The files whose names are wanted, the first of each name."""
    seen: set[str] = set()
    for name, offset, size in place.files:
        if not wanted(name):
            continue
        if name in seen:
            findings.append(Finding("duplicate", place.name, f"{name} is there twice; the first one is used"))
        else:
            seen.add(name)
            yield name, offset, size


def has_pairs(root: str | Path) -> bool:
    """Whether a folder is of SA-1B's kind: its first sub-folder or tar with pictures has .json files beside them."""
    for folder, files, _ in walk(Path(root).expanduser()):
        tars = (os.path.join(root, folder, file) for file in files if file.endswith(".tar"))
        for names in itertools.chain([files], map(_names, tars)):
            if any(map(is_picture, names)):
                kinds = {os.path.splitext(name)[1] for name in names}
                return ".json" in kinds and ".cls" not in kinds  # a file with the class: ImageNet's as a WebDataset
    return False


def _names(tar: str) -> list[str]:
    """Of the members, up to the first damage."""
    names: list[str] = []
    with suppress(DamagedTarError, OSError):
        names.extend(member.name for member in members(tar) if not _is_hidden(os.path.normpath(member.name)))
    return names


def _is_hidden(name: str) -> bool:
    """Whether a member, or a folder on the way to it, is one that ``walk`` would leave out; ``name`` is normal."""
    return "/." in f"/{name}"


def leads_outside(name: str) -> bool:
    """Whether a path, once joined to a folder, may lie elsewhere."""
    return os.path.isabs(name) or ".." in name.split("/")


def name_hashes(names: npt.NDArray[np.bytes_], *, extensions: bool) -> npt.NDArray[np.uint64]:
    """A hash of every name, without its folder, its extension if it has one, and its zero padding, all at once.

    FNV-1a leaves a name's last character out of the upper bits, so that what comes of names like sa_1 and sa_2 lies
    side by side: SplitMix64's last steps (Steele et al., "Fast Splittable Pseudorandom Number Generators", 2014)
    spread it.
    """
    characters = np.ascontiguousarray(names).view(np.uint8).reshape(len(names), names.itemsize)
    hashes = np.full(len(names), 0xCBF29CE484222325, np.uint64)
    before_dot = hashes.copy()
    for column in characters.T:
        if extensions:
            np.copyto(before_dot, hashes, where=column == ord("."))
        hashes = np.where(column == 0, hashes, (hashes ^ column) * np.uint64(0x100000001B3))
        hashes[column == ord("/")] = 0xCBF29CE484222325
    hashes = before_dot if extensions else hashes
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    spread: npt.NDArray[np.uint64] = hashes ^ (hashes >> np.uint64(31))
    return spread
