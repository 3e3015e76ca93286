"""Which pictures there are and where their bytes lie: a memory-mapped table, built once for a folder of data.

A set is tars as SA-1B ships them, loose files, or both; a sample is a .jpg with the .json of the same name. The index
is kept in ``.sam_ds_index`` in the folder, or in the user's cache when the folder cannot be written. It is built
anew when a tar's size or time, or a folder's time, is another one.

On disk: ``samples-*.npy``, a structured array, and ``index.json`` with the format version, the tars, the stamps that
tell whether it still holds, and the findings. ``index.json`` is replaced last and in one go.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from sam_ds.config.errors import UserError
from sam_ds.data.scan import Finding, leads_outside, name_hashes, row_dtype, scan

FORMAT = 1
_TABLE = re.compile(r"samples-[0-9a-f]{16}\.npy")
# What comes of reading an index that is not one, the second line of NumPy's headers.
_BROKEN = (
    *(OSError, ValueError, KeyError, TypeError, RecursionError),
    *(SyntaxError, EOFError, OverflowError, MemoryError, TokenError),
)
_MAX_FINDINGS = 1000  # kept of each kind; the counts are of all


@dataclass(frozen=True)
class IndexReport:
    """What building an index found. Every fault is named by the file and, where there is one, the member."""

    path: str
    samples: int
    shards: int
    counts: dict[str, int] = field(default_factory=dict)  # kind of fault -> how many
    findings: list[Finding] = field(default_factory=list)  # the first of each kind

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items())) or "no faults"
        return f"{self.path}: {self.samples} pictures with masks, {self.shards} tars, {faults}"


class Index:
    """A set, or a part of one. Sample i is row i; it is a few bytes of memory until its rows are read."""

    def __init__(self, root: Path, table: Path, shards: list[str], rows: npt.NDArray[np.int64] | None = None) -> None:
        self.root, self.table, self.shards, self.rows = root, table, shards, rows
        self.samples: npt.NDArray[np.void] = np.load(table, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.samples) if self.rows is None else len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the table again instead of receiving a copy."""
        return type(self), (self.root, self.table, self.shards, self.rows)

    def __getitem__(self, sample: int) -> np.void:
        """Fields stem, shard, jpg_offset, jpg_size, json_offset, json_size."""
        row: np.void = self.samples[sample if self.rows is None else self.rows[sample]]
        return row

    def fingerprint(self) -> str:
        """Equal for pictures of the same names (and sizes, in tars) in the same order, wherever they lie; unread."""
        digest = hashlib.sha256(self.samples.view(np.uint8).data)  # through the map: no copy of a large table
        if self.rows is not None:
            digest.update(self.rows.tobytes())
        return digest.hexdigest()[:16]

    def subset(self, samples: npt.NDArray[np.int64]) -> Index:
        """These samples only, numbered from 0."""
        rows = samples if self.rows is None else self.rows[samples]
        return Index(self.root, self.table, self.shards, rows)

    def name(self, sample: int) -> str:
        """Where the picture is, for messages: ``folder/sa_1.jpg`` or ``sa_000000.tar/sa_1.jpg``."""
        row = self[sample]
        stem, shard = os.fsdecode(bytes(row["stem"])), int(row["shard"])
        place = self.root / self.shards[shard] if 0 <= shard < len(self.shards) else self.root
        return f"{place}/{stem}.jpg"


def open_index(path: str | Path, tell: Callable[[str], None] | None = None) -> Index:
    """The index of a folder, built first, as ``build_index`` does, if there is none or the folder has changed.

    Raises:
        UserError: there is no such folder, or no picture with masks in it.
    """
    root = _folder(path)
    for home in _homes(root):
        header = _fresh_header(root, home)
        if header:
            return Index(root, home / header["table"], header["shards"])
    build_index(root, tell)
    for home in _homes(root):
        header = _fresh_header(root, home)
        if header:
            return Index(root, home / header["table"], header["shards"])
    raise UserError(f"{root} changes while it is being indexed: let the copying end first")


def build_index(path: str | Path, tell: Callable[[str], None] | None = None) -> IndexReport:
    """Index a folder anew and say what was found; faults are reported and left out, not fatal.

    Args:
        tell: hears of every folder and every tar when it is come to.

    Raises:
        UserError: there is no such folder, or no picture with masks in it.
    """
    root = _folder(path)
    home = _writable_home(root)
    found = scan(root, tell)
    counts: dict[str, int] = {}
    kept: list[Finding] = []
    for finding in found.findings:
        counts[finding.kind] = counts.get(finding.kind, 0) + 1
        if counts[finding.kind] <= _MAX_FINDINGS:
            kept.append(finding)
    report = IndexReport(str(root), len(found.samples), len(found.shards), counts, kept)
    if not report.samples:
        faults = f" (found: {', '.join(f'{n} {k}' for k, n in sorted(counts.items()))})" if counts else ""
        raise UserError(
            f"no picture with masks in {root}{faults}: give a folder of SA-1B tars, or of sa_1.jpg and sa_1.json pairs"
        )
    table = f"samples-{hashlib.sha256(found.samples.tobytes()).hexdigest()[:16]}.npy"
    _replace(home / table, found.samples)
    header = {
        "format": FORMAT,
        "table": table,
        "shards": found.shards,
        "stamps": found.stamps,
        "report": asdict(report),
    }
    _replace(home / "index.json", header)
    for old in home.glob("samples-*.npy"):
        if old.name != table:
            old.unlink(missing_ok=True)
    return report


def open_splits(path: str | Path, tell: Callable[[str], None] | None = None) -> tuple[Index, Index]:
    """The training and the evaluation part of a set.

    They are the sub-folders train/ and val/ where there are both. Otherwise 1 % of the pictures (at least 1, at most
    500) is held out: those whose names hash lowest, whatever the order or the tars they lie in.

    Raises:
        UserError: as ``open_index``; or the set has a single picture, so that nothing could be held out.
    """
    root = _folder(path)
    if (root / "train").is_dir() and (root / "val").is_dir():
        return open_index(root / "train", tell), open_index(root / "val", tell)
    index = open_index(root, tell)
    if len(index) < 2:
        raise UserError(f"{root} has a single picture with masks: give at least 2, or sub-folders train and val")
    held_out = min(500, max(1, round(len(index) / 100)))
    order = np.argsort(name_hashes(index.samples["stem"]), kind="stable")
    return index.subset(np.sort(order[held_out:])), index.subset(np.sort(order[:held_out]))


def _folder(path: str | Path) -> Path:
    root = Path(path).expanduser()
    if not root.exists():
        raise UserError(f"there is no data folder {root}: give one that holds SA-1B tars or jpg and json pairs")
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: give the folder that holds the tars or the jpg and json pairs")
    return root.resolve()


def _homes(root: Path) -> list[Path]:
    """Where an index may lie, the better place first."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [root / ".sam_ds_index", cache / "sam_ds" / hashlib.sha256(str(root).encode()).hexdigest()[:16]]


def _writable_home(root: Path) -> Path:
    for home in _homes(root):
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(home, os.W_OK):
            return home
    raise UserError(f"neither {_homes(root)[0]} nor {_homes(root)[1]} can be written: set XDG_CACHE_HOME to a folder")


def _fresh_header(root: Path, home: Path) -> dict[str, Any] | None:
    """The header of an index that still fits the folder, else None."""
    try:
        header = json.loads((home / "index.json").read_text())
        if header["format"] != FORMAT or not _is_whole(home, header["table"], header["shards"]):
            return None
        for name, size, time in header["stamps"]:
            status = os.stat(root / name)
            if status.st_mtime_ns != time or (size is not None and status.st_size != size):
                return None
    except _BROKEN:  # none there, or one that broke: build it anew
        return None
    return dict(header)


def _is_whole(home: Path, table: str, shards: list[str]) -> bool:
    """Whether an index that lies beside the data, and may have come with it, names nothing but that data."""
    if not _TABLE.fullmatch(table) or not isinstance(shards, list) or any(leads_outside(s) for s in shards):
        return False
    samples = np.load(home / table, mmap_mode="r", allow_pickle=False)
    return samples.ndim == 1 and len(samples) > 0 and samples.dtype == row_dtype(samples.dtype["stem"].itemsize)


def _replace(path: Path, content: npt.NDArray[np.void] | dict[str, Any]) -> None:
    """Write under another name and rename, so that nobody sees a half-written file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        if isinstance(content, dict):
            file.write(json.dumps(content, indent=1).encode())
        else:
            np.save(file, content)
    os.replace(temporary, path)
