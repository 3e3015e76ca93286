"""A checkpoint's manifest, as a training would write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam_ds.storage.checkpoints import Manifest, record, write_manifest


def complete(folder: Path, step: int, recipe: dict[str, Any] | None = None, score: float | None = None) -> Path:
    """Make a folder, with what is in it, a whole checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    files = record(folder, [path.name for path in sorted(folder.iterdir())])
    write_manifest(folder, Manifest(step, 1, 2, "fp32", False, recipe or {}, {}, score, files=files))
    return folder
