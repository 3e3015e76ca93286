"""SA-1B's sets: tars as they ship, loose files, or both; a sample is a .jpg with the .json of the same name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sam_ds.data.halves import open_halves
from sam_ds.data.scan import Pairs, row_dtype
from sam_ds.data.table import IndexReport, Kind, Table, build_table, open_table

_MOST_HELD_OUT = 500  # pictures; their masks are many


class Index(Table):
    """A set, or a part of one. A row's fields: stem, shard, jpg_offset, jpg_size, json_offset, json_size."""

    kind = Kind(
        header="index.json",
        table="samples",
        name="stem",
        extensions=False,
        row_dtype=row_dtype,
        keeps=("shards",),
        gather=Pairs,
        what="picture with masks",
        needed="a folder of SA-1B tars, or of sa_1.jpg and sa_1.json pairs",
    )

    def name(self, sample: int) -> str:
        """Where the picture is, for messages: ``folder/sa_1.jpg`` or ``sa_000000.tar/sa_1.jpg``."""
        return f"{self.place(sample)[2]}.jpg"


def open_index(path: str | Path, tell: Callable[[str], None] | None = None) -> Index:
    """``open_table`` of SA-1B's samples."""
    return open_table(Index, path, tell)


def build_index(path: str | Path, tell: Callable[[str], None] | None = None) -> IndexReport:
    """``build_table`` of SA-1B's samples."""
    return build_table(Index, path, tell)


def open_splits(
    path: str | Path, tell: Callable[[str], None] | None = None, val: str | Path | None = None
) -> tuple[Index, Index]:
    """``open_halves`` of SA-1B's samples."""
    return open_halves(Index, path, _MOST_HELD_OUT, tell, val)
