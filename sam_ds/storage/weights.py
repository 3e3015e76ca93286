"""The file of weights that a user's path means."""

from __future__ import annotations

from pathlib import Path

from sam_ds.config.errors import UserError
from sam_ds.storage import checkpoints


def find_weights(source: Path, raw: bool = False) -> Path:
    """The weights file of a checkpoint, or of the last whole checkpoint of a run folder.

    It holds the mean of the weights where the training kept one, unless those of its last step are wanted (``raw``).

    Raises:
        UserError: there is none, or it is not what was written.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give a run folder or one of its checkpoints")
    folder = checkpoints.resolve(source)
    known = checkpoints.read_manifest(folder).files
    name = checkpoints.WEIGHTS if raw or checkpoints.MEAN_WEIGHTS not in known else checkpoints.MEAN_WEIGHTS
    if wrong := checkpoints.damaged(folder, {name: known[name]}):
        raise UserError(f"{wrong[0]}: name another checkpoint, such as one of {folder.parent}")
    return folder / name
