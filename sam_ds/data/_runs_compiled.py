"""The compiled form of ``runs.parse``."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"
from __future__ import annotations

import numba


@numba.njit(cache=True, nogil=True)
def parse(text, limits, pixels, ends, offsets):  # pragma: no cover (runs compiled)
    """Parse mask after mask from ``text`` (uint8), mask m at limits[m]:limits[m + 1].

    ``ends`` (int32) and ``offsets`` (int64 [O+1]) take the result.

    Returns:
        the mask and the kind of the first fault (``runs.FAULTS``), or (-1, 0).
    """
    out = 0
    for mask in range(limits.size - 1):
        total = 0
        before = last = 0  # the runs two and one before
        at, end = limits[mask], limits[mask + 1]
        first = out
        while at < end:
            value, at, fault = _number(text, at, end)
            if fault:
                return mask, fault
            if out - first > 2:
                value += before
            total += value
            if value < 0 or total > pixels:
                return mask, 3 if value < 0 else 4
            ends[out] = total
            out += 1
            before, last = last, value
        if total != pixels or out == first:
            return mask, 4
        offsets[mask + 1] = out
    return -1, 0


@numba.njit(cache=True, nogil=True, inline="always")
def _number(text, at, end):  # pragma: no cover (runs compiled)
    """The number at ``at``, the place after it, and the kind of its fault or 0."""
    value = 0
    shift = 0
    while at < end:
        code = int(text[at]) - 48
        at += 1
        if code < 0 or code > 63:
            return value, at, 1
        value |= (code & 31) << shift
        shift += 5
        if code & 32 == 0:
            if code & 16:
                value -= 1 << shift
            return value, at, 0
        if shift > 30:
            return value, at, 4  # beyond any picture
    return value, at, 2
