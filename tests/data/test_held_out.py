"""Which pictures of a set without train/ and val/ are held out."""

from __future__ import annotations

from pathlib import Path

from sam_ds.data.index import Index, open_splits
from tests.data.photos import pack


def _pairs(numbers: range) -> dict[str, bytes]:
    return {f"./sa_{number}.{kind}": b"" for number in numbers for kind in ("jpg", "json")}


def _numbers(index: Index) -> list[int]:
    return [int(Path(index.name(sample)).stem.removeprefix("sa_")) for sample in range(len(index))]


def test_neighbours_are_not_held_out_together(tmp_path: Path) -> None:
    """Pictures of one shoot or one slide often follow each other."""
    pack(tmp_path / "sa_000000.tar", _pairs(range(2000)))
    train, val = open_splits(tmp_path)
    assert (len(train), len(val)) == (1980, 20)
    assert len({number // 10 for number in _numbers(val)}) > 16  # by chance, 19 of 20
