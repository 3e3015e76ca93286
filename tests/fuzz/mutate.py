"""Valid input made wrong: bytes flipped, cut and repeated, and JSON with values that do not belong.

All of it is drawn from a ``random.Random``: a seeded one for millions of cases, hypothesis' own for those that shrink.
"""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

_NUMBERS = (0, 1, -1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**18, 10**400, 0.5, -0.0, 1e308, 5e-324)
_ODD_NUMBERS = (float("inf"), float("-inf"), float("nan"))
_TEXTS = ("", "auto", "none", "x", "1", "true", "../../etc/passwd", "/etc/passwd", "\0", "\ud800", "é" * 40, "9" * 5000)
_TOKENS = (
    b"[" * 5000,
    b"{" * 200,
    b"1e400",
    b"NaN",
    b"-",
    b"9" * 5000,
    b'"\\ud800"',
    b"\xff\xfe",
    b"\0",
    b",",
    b"null",
)


def junk(rng: Random) -> Any:
    """A JSON value of any kind."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice((None, True, False, [], {}, [[1, 2], [3]], [[[[[]]]]], {"a": {"b": 1}}))
    if kind == 1:
        return rng.choice(_NUMBERS)
    if kind == 2:
        return rng.choice(_ODD_NUMBERS)
    if kind == 3:
        return rng.choice(_TEXTS)
    if kind == 4:
        return rng.randrange(-100, 70000)
    return [rng.choice(_NUMBERS) for _ in range(rng.randrange(5))]


def other_json(rng: Random, value: Any) -> Any:
    """``value`` with a few places replaced, removed or added."""
    value = copy.deepcopy(value)
    for _ in range(rng.randrange(1, 4)):
        value = _change(rng, value)
    return value


def _change(rng: Random, value: Any) -> Any:
    if not value or not isinstance(value, (dict, list)) or rng.random() < 0.02:
        return junk(rng)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = keys[rng.randrange(len(keys))]
    deed = rng.randrange(12)
    if deed == 0:
        del value[key]
    elif deed == 1 and isinstance(value, dict):
        value[rng.choice((*_TEXTS, str(key) + "x"))] = junk(rng)
    elif deed == 2 and isinstance(value, list):
        value.insert(key, junk(rng))
    elif deed == 3 and isinstance(value, list):
        value.extend(copy.deepcopy(value))
    elif deed < 6:
        value[key] = junk(rng)
    else:
        value[key] = _change(rng, value[key])
    return value


def other_bytes(rng: Random, content: bytes) -> bytes:
    """``content`` with a few flips, cuts, repetitions and insertions."""
    result = bytearray(content)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(result) + 1)
        end = min(len(result), at + rng.choice((1, 2, 4, 16, 64, 512)))
        deed = rng.randrange(7)
        if deed < 2 and at < len(result):
            result[at] ^= 1 << rng.randrange(8)
        elif deed == 2 and at < len(result):
            result[at] = rng.randrange(256)
        elif deed == 3:
            del result[at:end]
        elif deed == 4:
            result[at:at] = result[at:end]
        elif deed == 5:
            result[at:at] = rng.choice(_TOKENS)
        elif deed == 6 and rng.random() < 0.3:
            del result[at:]
    return bytes(result)


def json_case(rng: Random, values: list[Any]) -> bytes:
    """One of the values as JSON: as it is, with other places, as damaged text, or both."""
    value = values[rng.randrange(len(values))]
    way = rng.randrange(10)
    if 0 < way < 8:
        value = other_json(rng, value)
    content = json.dumps(value).encode()
    return other_bytes(rng, content) if way > 6 else content
