"""The compiled form of ``runs.parse``."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"
from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def parse(text, limits, pixels, ends, offsets):
    """Parse mask after mask from ``text`` (uint8), mask m at limits[m]:limits[m + 1].

    ``ends`` (int32) and ``offsets`` (int64 [O+1]) take the result.

    Returns:
        the mask and the kind of the first fault (``runs.FAULTS``), or (-1, 0).
    """
    out = 0
    for mask in range(limits.size - 1):
        out, fault = _parse_one(text, limits[mask], limits[mask + 1], pixels, ends, out)
        if fault:
            return mask, fault
        offsets[mask + 1] = out
    return -1, 0


@numba.njit(cache=True, nogil=True, inline="always")
def _parse_one(text, begin, end, pixels, ends, first):
    """Write a mask's ends from ends[first] on. One pass without a branch a character but the last of a number's."""
    out = first
    total = 0
    before = last = 0  # the runs two and one before
    value = shift = 0
    seen = 0  # all codes or-ed: within 0 to 63 if each of them is
    fault = 0
    for at in range(begin, end):
        code = np.int64(text[at]) - 48
        seen |= code
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            if shift > 30:
                fault = 4  # beyond any picture
                break
            continue
        value -= ((code >> 4) & 1) << shift
        if out - first > 2:
            value += before
        total += value
        if value < 0 or total > pixels:
            fault = 3 if value < 0 else 4
            break
        ends[out] = total
        out += 1
        before, last = last, value
        value = shift = 0
    if seen < 0 or seen > 63:
        fault = 1
    elif fault == 0 and shift > 0:
        fault = 2
    elif fault == 0 and total != pixels:
        fault = 4
    return out, fault
