"""The part of a set that is trained on, and the one that is evaluated on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam_ds.config.errors import UserError
from sam_ds.data.scan import name_hashes
from sam_ds.data.table import Table, TableT, open_table


def open_halves(
    cls: type[TableT],
    path: str | Path,
    most: int,
    tell: Callable[[str], None] | None = None,
    val: str | Path | None = None,
) -> tuple[TableT, TableT]:
    """The training and the evaluation part of a set.

    They are the sub-folders train/ and val/ where there are both. Otherwise 1 % of the pictures (at least 1, at most
    ``most``) is held out: those whose names hash lowest, whatever the order or the tars they lie in. Neither extensions
    nor folders count, as these may be classes for one task and none for another: what is held out of a folder for
    SA-1B's task is held out for its pre-training on pictures alone too.

    Args:
        val: another set, to be evaluated on: its val/ where it has both sub-folders, else all of it. Then nothing is
            held out of ``path``, and of its sub-folders, train/ is taken alone.

    Raises:
        UserError: as ``open_table``; or the set has a single picture, so that nothing could be held out.
    """
    train, *own = halves(path)
    index = open_table(cls, train, tell)
    if val or own:
        return index, open_table(cls, halves(val)[-1] if val else own[0], tell)
    if len(index) < 2:
        raise UserError(f"{index.root} has a single {cls.kind.what}: give at least 2, or sub-folders train and val")
    held_out = min(most, max(1, round(len(index) / 100)))
    lowest = _lowest(index, held_out)
    return index.subset(np.delete(np.arange(len(index)), lowest)), index.subset(lowest)


def _lowest(index: Table, count: int) -> npt.NDArray[np.int64]:
    """Whose names hash lowest; of those of the last name that counts, which many folders may have, whose paths do."""
    hashes = name_hashes(index.samples[index.kind.name], extensions=index.kind.extensions)
    last = np.partition(hashes, count - 1)[count - 1]
    lower, tied = np.flatnonzero(hashes < last), np.flatnonzero(hashes == last)
    by_path = sorted(tied.tolist(), key=lambda sample: _hash(index.path(sample)))
    return np.sort(np.append(lower, by_path[: count - len(lower)]))


def _hash(path: str) -> bytes:
    return hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def halves(path: str | Path) -> list[Path]:
    """The sub-folders train/ and val/ where there are both, else the folder itself."""
    root = Path(path).expanduser()
    parts = [root / "train", root / "val"]
    return parts if all(part.is_dir() for part in parts) else [root]
