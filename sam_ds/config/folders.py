"""Folders that results are written to."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sam_ds.config.errors import UserError


def make_writable(folder: Path) -> None:
    """Make the folder, and find out before any work that nothing can be written there.

    Raises:
        UserError: so it is.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose another --output") from None
