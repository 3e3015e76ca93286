"""What must not be written down: the name and password in a server's address."""

from __future__ import annotations

import re

_IN_ADDRESS = re.compile(r"(\w:/{1,2})[^/@\s]+@")  # one slash: a path, where it was taken for one


def without_passwords(text: str) -> str:
    """The text with every ``scheme://user:password@host`` as ``scheme://host``."""
    return _IN_ADDRESS.sub(r"\1", text)
