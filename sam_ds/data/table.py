"""Which samples a folder holds, as a memory-mapped table that is built once.

The table is kept in ``.sam_ds_index`` in the folder, or in the user's cache when the folder cannot be written. It is
built anew when a tar's size or time, or a folder's time, is another one. What a sample is, the ``Kind`` says: tables
of several kinds of the same folder lie side by side under names of their own.

On disk: ``samples-*.npy``, a structured array, and ``index.json`` with the format version, the tars, the stamps that
tell whether it still holds, and the findings. ``index.json`` is replaced last and in one go.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from sam_ds.config.errors import UserError
from sam_ds.data.scan import Finding, Gather, leads_outside, scan

FORMAT = 2  # raised too when other samples of the same files are taken
# What comes of reading an index that is not one, the second line of NumPy's headers.
_BROKEN = (
    *(OSError, ValueError, KeyError, TypeError, RecursionError),
    *(SyntaxError, EOFError, OverflowError, MemoryError, TokenError),
)
_MAX_FINDINGS = 1000  # kept of each kind; the counts are of all

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """What sort of samples a table has."""

    header: str  # the file that names the table
    table: str  # the beginning of the table's own name
    name: str  # the field of a row that says where a sample is in the folder or the tar
    extensions: bool  # whether it ends in the file's
    row_dtype: Callable[[int], np.dtype[np.void]]  # by the bytes that names take
    keeps: tuple[str, ...]  # entries of the header that an open index has at hand
    gather: Callable[[], Gather]  # what finds the samples
    what: str  # a sample is, for messages
    needed: str  # what to give instead of a folder without any


class Table:
    """Samples of a folder, or a part of them. It is a few bytes of memory until its rows are read."""

    kind: ClassVar[Kind]

    def __init__(
        self, root: Path, table: Path, header: dict[str, Any], rows: npt.NDArray[np.int64] | None = None
    ) -> None:
        self.root, self.table, self.header, self.rows = root, table, header, rows
        self.shards: list[str] = header["shards"]
        self.samples: npt.NDArray[np.void] = np.load(table, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.samples) if self.rows is None else len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the table again instead of receiving a copy."""
        return type(self), (self.root, self.table, self.header, self.rows)

    def __getitem__(self, sample: int) -> np.void:
        """The row of a sample; its kind says which fields that has."""
        row: np.void = self.samples[sample if self.rows is None else self.rows[sample]]
        return row

    def fingerprint(self) -> str:
        """Equal for pictures of the same names (and sizes, in tars) in the same order, wherever they lie; unread."""
        digest = hashlib.sha256(self.samples.view(np.uint8).data)  # through the map: no copy of a large table
        if self.rows is not None:
            digest.update(self.rows.tobytes())
        return digest.hexdigest()[:16]

    def subset(self: TableT, samples: npt.NDArray[np.int64]) -> TableT:
        """These samples only, numbered from 0."""
        rows = samples if self.rows is None else self.rows[samples]
        return type(self)(self.root, self.table, self.header, rows)

    def place(self, sample: int) -> tuple[int, str, str]:
        """The tar that a sample lies in (or LOOSE), its name there, and both in one for messages."""
        row = self[sample]
        shard, name = int(row["shard"]), os.fsdecode(bytes(row[self.kind.name]))
        folder = self.root / self.shards[shard] if 0 <= shard < len(self.shards) else self.root
        return shard, name, f"{folder}/{name}"

    def path(self, sample: int) -> str:
        """Where a sample is in its set, without the extension, however the set is packed."""
        return self.place(sample)[1]


TableT = TypeVar("TableT", bound=Table)


@dataclass(frozen=True)
class IndexReport:
    """What building an index found. Every fault is named by the file and, where there is one, the member."""

    path: str
    samples: int
    what: str  # the samples are
    shards: int
    counts: dict[str, int] = field(default_factory=dict)  # kind of fault -> how many
    findings: list[Finding] = field(default_factory=list)  # the first of each kind

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items())) or "no faults"
        return f"{self.path}: {self.samples} {self.what}, {self.shards} tars, {faults}"


def open_table(cls: type[TableT], path: str | Path, tell: Callable[[str], None] | None = None) -> TableT:
    """The index of a folder, built first, as ``build_table`` does, if there is none or the folder has changed.

    Raises:
        UserError: there is no such folder, or no such sample in it.
    """
    root = _folder_of(path, cls.kind)
    found = _fresh(root, cls)
    if found is None:
        report = build_table(cls, root, tell)
        if report.counts:
            _logger.warning("%s (sam-ds data index lists them)", report)
        found = _fresh(root, cls)
    if found is None:
        raise UserError(f"{root} changes while it is being indexed: let the copying end first")
    return found


def build_table(cls: type[Table], path: str | Path, tell: Callable[[str], None] | None = None) -> IndexReport:
    """Index a folder anew and say what was found; faults are reported and left out, not fatal.

    Args:
        tell: hears of every folder and every tar when it is come to.

    Raises:
        UserError: there is no such folder, or no such sample in it.
    """
    kind = cls.kind
    root = _folder_of(path, kind)
    home, gather = _writable_home(root), kind.gather()
    found = scan(root, tell, gather)
    counts: dict[str, int] = {}
    kept: list[Finding] = []
    for finding in found.findings:
        counts[finding.kind] = counts.get(finding.kind, 0) + 1
        if counts[finding.kind] <= _MAX_FINDINGS:
            kept.append(finding)
    if not len(found.samples):
        faults = f" (found: {', '.join(f'{n} {k}' for k, n in sorted(counts.items()))})" if counts else ""
        raise UserError(f"no {kind.what} in {root}{faults}: give {kind.needed}")
    report = IndexReport(str(root), len(found.samples), gather.what(), len(found.shards), counts, kept)
    table = f"{kind.table}-{hashlib.sha256(found.samples.view(np.uint8).data).hexdigest()[:16]}.npy"
    _replace(home / table, found.samples)
    header = {
        "format": FORMAT,
        "table": table,
        "shards": found.shards,
        "stamps": found.stamps,
        "report": asdict(report),
        **gather.facts(),
    }
    _replace(home / kind.header, header)
    for old in home.glob(f"{kind.table}-*.npy"):
        if old.name != table:
            old.unlink(missing_ok=True)
    return report


def _folder_of(path: str | Path, kind: Kind) -> Path:
    """
    Raises:
        UserError: there is no such folder.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise UserError(f"there is no data folder {root}: give {kind.needed}")
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: give {kind.needed}")
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


def _fresh(root: Path, cls: type[TableT]) -> TableT | None:
    """An index that still fits the folder, else None."""
    return next((found for home in _homes(root) if (found := _opened(root, home, cls)) is not None), None)


def _opened(root: Path, home: Path, cls: type[TableT]) -> TableT | None:
    try:
        header = json.loads((home / cls.kind.header).read_text())
        if header["format"] != FORMAT or not _fits(root, header) or not _is_whole(home, header, cls.kind):
            return None
        return cls(root, home / header["table"], {name: header[name] for name in cls.kind.keeps})
    except _BROKEN:  # none there, or one that broke: build it anew
        return None


def _fits(root: Path, header: dict[str, Any]) -> bool:
    """Whether neither a tar nor a folder is another one since the index was built."""
    for name, size, time in header["stamps"]:
        status = os.stat(root / name)
        if status.st_mtime_ns != time or (size is not None and status.st_size != size):
            return False
    return True


def _is_whole(home: Path, header: dict[str, Any], kind: Kind) -> bool:
    """Whether an index that lies beside the data, and may have come with it, names nothing but that data."""
    table, shards = header["table"], header["shards"]
    if not re.fullmatch(rf"{kind.table}-[0-9a-f]{{16}}\.npy", table):
        return False
    if not isinstance(shards, list) or any(leads_outside(shard) for shard in shards):
        return False
    samples = np.load(home / table, mmap_mode="r", allow_pickle=False)
    return samples.ndim == 1 and len(samples) > 0 and samples.dtype == kind.row_dtype(samples.dtype[kind.name].itemsize)


def _replace(path: Path, content: npt.NDArray[np.void] | dict[str, Any]) -> None:
    """Write under another name and rename, so that nobody sees a half-written file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        if isinstance(content, dict):
            file.write(json.dumps(content, indent=1).encode())
        else:
            np.save(file, content)
    os.replace(temporary, path)
