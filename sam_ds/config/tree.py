"""The recipe as a tree: its dotted names, and checking a plain value against a field's annotation."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import typing
from collections.abc import Iterator
from typing import Any

_TOO_LARGE = 2**63  # for tensors, NumPy and files


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The resolved annotations of a dataclass, by field name."""
    known = typing.get_type_hints(cls)
    return {field.name: known[field.name] for field in dataclasses.fields(cls)}


def leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting under dataclass ``cls`` as (dotted name, annotation), in the order of the schema."""
    for name, hint in hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from leaves(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def get(node: Any, path: str) -> Any:
    """The value at a dotted name."""
    return functools.reduce(getattr, path.split("."), node)


def put(node: Any, path: str, value: Any) -> Any:
    """A copy of the dataclass ``node`` with the value at the dotted name replaced."""
    name, _, rest = path.partition(".")
    return dataclasses.replace(node, **{name: put(getattr(node, name), rest, value) if rest else value})


def describe(hint: Any) -> str:
    """An annotation in a user's words: ``a number``, ``2 numbers, as in 0.1,2.0``."""
    if typing.get_origin(hint) is tuple:
        item, *others = typing.get_args(hint)
        one = describe(item).split(" ", 1)[1]
        if others == [Ellipsis]:
            return f"{one}s separated by commas"
        return f"{1 + len(others)} {one}s separated by commas"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[hint]


def convert(value: Any, hint: Any) -> Any:
    """A JSON value as the annotated type: whole numbers pass as floats, lists as tuples.

    Raises:
        ValueError: the value is of another type.
    """
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        if not isinstance(value, (list, tuple)):
            raise ValueError(value)
        if items[-1] is Ellipsis:
            return tuple(convert(item, items[0]) for item in value)
        if len(value) != len(items):
            raise ValueError(value)
        return tuple(convert(item, kind) for item, kind in zip(value, items, strict=True))
    if hint is float and type(value) is int:
        value = float(value) if abs(value) <= sys.float_info.max else math.inf
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise ValueError(value)
    if hint is int and abs(value) >= _TOO_LARGE:
        raise ValueError(value)
    return value
