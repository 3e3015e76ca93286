"""Numbers side by side, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def table(titles: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A column a title, a line a row: its label, then a number for each title."""
    first = max(map(len, rows))
    widths = [max(len(title), 6) for title in titles]
    lines = [("", titles), *rows.items()]
    return "\n".join(
        f"{label:<{first}}" + "".join(f"  {text:>{width}}" for text, width in zip(texts, widths, strict=True))
        for label, texts in lines
    )
