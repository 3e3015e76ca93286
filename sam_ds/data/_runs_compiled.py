"""The compiled form of ``runs.parse``."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"
from __future__ import annotations

import numba


@numba.njit(cache=True, nogil=True)
def parse(text, limits, pixels, ends, offsets):  # pragma: no cover (runs compiled)
    """Parse mask after mask from ``text`` (uint8), mask m at limits[m]:limits[m + 1].

    ``ends`` (int32) and ``offsets`` (int64 [O+1]) take the result.

    Returns:
        the mask and the kind of the first fault (``runs._FAULTS``), or (-1, 0).
    """
    out = 0
    for mask in range(limits.size - 1):
        total = 0
        before = last = 0  # the runs two and one before
        at = limits[mask]
        first = out
        while at < limits[mask + 1]:
            value = 0
            shift = 0
            more = True
            while more:
                if at == limits[mask + 1]:
                    return mask, 2
                code = int(text[at]) - 48
                if code < 0 or code > 63:
                    return mask, 1
                if shift > 30:
                    return mask, 4
                value |= (code & 31) << shift
                shift += 5
                more = (code & 32) != 0
                at += 1
                if not more and code & 16:
                    value -= 1 << shift
            if out - first > 2:
                value += before
            if value < 0:
                return mask, 3
            total += value
            if total > pixels:
                return mask, 4
            ends[out] = total
            out += 1
            before, last = last, value
        if total != pixels or out == first:
            return mask, 4
        offsets[mask + 1] = out
    return -1, 0
