"""COCO's run-length strings become cumulative run ends; nothing here ever makes a raster.

The format (pycocotools, ``rleFrString``): a mask's runs alternate background and foreground, down the columns. From
the fourth run on a length is stored as the difference to the one two before. A number is cut into 5-bit groups,
lowest first, each written as the character 48 + group, plus 32 if another group follows; the highest bit of the last
group is the sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sam_ds.ops.compiled import NUMBA

if NUMBA:
    from sam_ds.data import _runs_compiled
else:
    _runs_compiled = None  # type: ignore[assignment]

Ends = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]

FAULTS = {
    1: "holds a character that is none of the format's",
    2: "breaks off within a number",
    3: "has a negative run",
    4: "covers another number of pixels than the picture has",
    5: "is neither a string nor a list of whole numbers",
}


class BadRunsError(ValueError):
    """A mask that is none: ``mask`` counts from 0 in what was to be parsed, ``reason`` says what is wrong."""

    def __init__(self, mask: int, reason: str) -> None:
        super().__init__(f"the RLE of mask {mask} {reason}")
        self.mask, self.reason = mask, reason


def parse(segmentations: Sequence[dict[str, Any]], size: tuple[int, int]) -> tuple[Ends, Offsets]:
    """Cumulative run ends of masks in COCO's RLE.

    Args:
        segmentations: ``{"size": [height, width], "counts": compressed string or list of run lengths}`` each.
        size: height and width of the picture.

    Returns:
        ends int32 [R] and offsets int64 [O+1], as ``MaskRuns`` holds them.

    Raises:
        BadRunsError: a mask of another size, or whose runs do not add up to the picture's pixels, or a broken string.
    """
    for number, segmentation in enumerate(segmentations):
        if tuple(segmentation["size"]) != tuple(size):
            raise BadRunsError(number, f"is for a picture of {list(segmentation['size'])}, not {list(size)}")
    counts = [segmentation["counts"] for segmentation in segmentations]
    if all(isinstance(c, str) for c in counts):
        return _parse_strings([c.encode("utf-8", "surrogatepass") for c in counts], size[0] * size[1])
    return _join([_parse_one(number, c, size[0] * size[1]) for number, c in enumerate(counts)])


def _parse_one(number: int, counts: Any, pixels: int) -> Ends:
    """One mask without a loop over its runs: for lists, and for a machine without numba."""
    if isinstance(counts, str):
        counts = counts.encode("utf-8", "surrogatepass")
    lengths, fault = _string_lengths(counts) if isinstance(counts, bytes) else _list_lengths(counts)
    if not fault and (lengths < 0).any():
        fault = 3
    if not fault and (lengths > pixels).any():
        fault = 4  # their sum could pass 2^63 and come out right
    ends = np.cumsum(lengths)
    if not fault and (ends.size == 0 or ends[-1] != pixels):
        fault = 4
    if fault:
        raise BadRunsError(number, FAULTS[fault])
    return ends.astype(np.int32)


def _parse_strings(strings: list[bytes], pixels: int) -> tuple[Ends, Offsets]:
    if _runs_compiled is None:
        return _join([_parse_one(number, s, pixels) for number, s in enumerate(strings)])
    text = np.frombuffer(b"".join(strings), np.uint8)
    limits = np.zeros(len(strings) + 1, np.int64)
    np.cumsum([len(s) for s in strings], out=limits[1:])
    ends = np.empty(text.size, np.int32)  # a run takes at least one character
    offsets = np.zeros(len(strings) + 1, np.int64)
    mask, fault = _runs_compiled.parse(text, limits, pixels, ends, offsets)
    if fault:
        raise BadRunsError(mask, FAULTS[fault])
    return ends[: offsets[-1]].copy(), offsets


def _string_lengths(string: bytes) -> tuple[npt.NDArray[np.int64], int]:
    """Run lengths, and the kind of the first fault or 0."""
    code = np.frombuffer(string, np.uint8).astype(np.int64) - 48
    none = np.zeros(0, np.int64)
    if not code.size:
        return none, 4
    if ((code < 0) | (code > 63)).any():
        return none, 1
    last = (code & 32) == 0  # of its number
    if not last[-1]:
        return none, 2
    stops = np.flatnonzero(last) + 1
    starts = np.concatenate([[0], stops[:-1]]).astype(np.int64)
    group = np.arange(code.size) - np.repeat(starts, stops - starts)
    if (group > 6).any():
        return none, 4
    lengths = np.add.reduceat((code & 31) << (5 * group), starts)
    negative = (code[stops - 1] & 16) != 0
    lengths -= np.where(negative, np.int64(1) << (5 * (stops - starts)), 0)
    lengths[1::2] = np.cumsum(lengths[1::2])  # the sums over the differences
    lengths[2::2] = np.cumsum(lengths[2::2])
    return lengths, 0


def _list_lengths(counts: Any) -> tuple[npt.NDArray[np.int64], int]:
    try:
        lengths = np.asarray(counts)
    except ValueError:  # lists of several lengths within
        return np.zeros(0, np.int64), 5
    if lengths.ndim != 1 or not (lengths.size == 0 or np.issubdtype(lengths.dtype, np.integer)):
        return np.zeros(0, np.int64), 5
    return lengths.astype(np.int64), 0


def _join(parts: list[Ends]) -> tuple[Ends, Offsets]:
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([p.size for p in parts], out=offsets[1:])
    return np.concatenate(parts) if parts else np.zeros(0, np.int32), offsets
