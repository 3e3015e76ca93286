"""The file of weights that a user's path means."""

from __future__ import annotations

from pathlib import Path

from sam_ds.config.errors import UserError
from sam_ds.storage import checkpoints


def find_weights(source: Path) -> Path:
    """The weights file of a checkpoint, or of the last whole checkpoint of a run folder.

    Raises:
        UserError: there is none, or it is not what was written.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give a run folder or one of its checkpoints")
    folder = checkpoints.resolve(source)
    known = checkpoints.read_manifest(folder).files
    if wrong := checkpoints.damaged(folder, {checkpoints.WEIGHTS: known[checkpoints.WEIGHTS]}):
        raise UserError(f"{wrong[0]}: name another checkpoint, such as one of {folder.parent}")
    return folder / checkpoints.WEIGHTS
