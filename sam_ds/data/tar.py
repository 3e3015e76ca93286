"""Where the members of a tar lie. Only the headers are read, 512 bytes a member, whatever the members weigh.

``tarfile`` builds an object a member and stops at a damaged header by raising; a set of eleven million pictures
wants neither. Understood: POSIX ustar with name prefixes, GNU long names, pax paths and sizes, base-256 sizes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

_BLOCK = 512
_EMPTY = bytes(_BLOCK)
_PAX_DIGITS = 20  # of a length, at most
_MOST_EXTRA = 1 << 20  # bytes of a header's extension: names and attributes
_RECORD = 20 * _BLOCK  # writers fill their last record up


class DamagedTarError(ValueError):
    """The walk cannot go on: the file ends early, a header is not one or overwritten. What came before it is good."""


@dataclass(frozen=True)
class Member:
    name: str
    offset: int  # of the first byte of its content in the tar
    size: int  # bytes


def members(path: str) -> Iterator[Member]:
    """The regular files of a tar, in the order they lie in.

    Raises:
        DamagedTarError: the tar is cut short (also when only its end mark is missing) or damaged.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield from _walk(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _walk(descriptor: int, total: int) -> Iterator[Member]:
    position = 0
    extra: dict[str, str] = {}  # what the headers before say about the next member
    while True:
        header = os.pread(descriptor, _BLOCK, position)
        if len(header) < _BLOCK:
            raise DamagedTarError(f"ends at byte {total} without an end mark: cut short")
        if header == _EMPTY:
            _check_end(descriptor, position, total)
            return
        if not _checksum_fits(header):
            raise DamagedTarError(f"the header at byte {position} is damaged")
        kind = header[156:157]
        size = _size(header, extra, position)
        content = position + _BLOCK
        position = content + -(-size // _BLOCK) * _BLOCK
        if content + size > total:
            raise DamagedTarError(f"ends at byte {total} within {extra.get('path', _name(header))}: cut short")
        if kind in (b"x", b"L") and size > _MOST_EXTRA:
            raise DamagedTarError(f"the header at byte {position} is damaged: {size} bytes of name and attributes")
        if kind == b"x":
            extra.update(_pax(os.pread(descriptor, size, content), content))
        elif kind == b"L":
            extra["path"] = _text(os.pread(descriptor, size, content))
        elif kind != b"g":
            if kind in (b"0", b"\0"):
                yield Member(extra.get("path", _name(header)), content, size)
            extra = {}


def _check_end(descriptor: int, position: int, total: int) -> None:
    """A block of zeros ends a tar, and the filling of its last record follows: more than that is lost members."""
    rest = position
    while total - position > _RECORD and (content := os.pread(descriptor, 1 << 20, rest)):
        if content.count(0) < len(content):
            raise DamagedTarError(f"has zeros for a header at byte {position} but goes on: what follows is lost")
        rest += len(content)


def _size(header: bytes, extra: dict[str, str], position: int) -> int:
    try:
        size = int(extra.get("size", _number(header[124:136])))
    except ValueError:
        size = -1
    if size < 0:
        raise DamagedTarError(f"the header at byte {position} is damaged: it has no size")
    return size


def _checksum_fits(header: bytes) -> bool:
    """The sum of the header's bytes with its own field read as blanks."""
    try:
        return sum(header) - sum(header[148:156]) + 8 * 32 == _number(header[148:156])
    except ValueError:
        return False


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # too large for octal digits: base 256
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    digits = field.strip(b"\0 ")
    return int(digits, 8) if digits else 0


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _name(header: bytes) -> str:
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{_text(header[:100])}" if prefix else _text(header[:100])


def _pax(content: bytes, position: int) -> dict[str, str]:
    """Records of the form ``length key=value`` with the length in decimal, the whole record and its newline counted."""
    records, at = {}, 0
    while at < len(content):
        digits, _, _ = content[at : at + _PAX_DIGITS].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = content[at + len(digits) + 1 : at + length - 1].partition(b"=")
        if not equals or content[at + length - 1 : at + length] != b"\n":
            raise DamagedTarError(f"the pax header at byte {position} is damaged")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at += length
    return records
