"""The folders of checkpoints: names, manifests, which are complete, which to keep.

``checkpoints/step_00001000/`` holds DeepSpeed's own files, ``weights.safetensors`` (the model alone, fp32, released
names), ``task.safetensors`` where a run needs more than that to go on, each rank's random state, and, written last,
``complete.json``: a folder without it does not count. No file elsewhere says which is the latest: it is looked up.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam_ds.config.errors import UserError

MANIFEST = "complete.json"
WEIGHTS = "weights.safetensors"
VERSION = 1
_NAME = re.compile(r"step_(\d{8})$")


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds, and what it takes to load it."""

    step: int  # optimizer steps done; the next one to train
    world_size: int
    zero_stage: int
    precision: str
    frozen: bool  # saved while the encoder was frozen
    recipe: dict[str, Any]
    shapes: dict[str, list[int]]  # of the task's parameters
    score: float | None = None  # of the evaluation at this step, if there was one
    progress: dict[str, Any] = field(default_factory=dict)  # what the trainer counts
    files: dict[str, int] = field(default_factory=dict)  # bytes of every other file
    version: int = VERSION
    global_batch: int | None = None  # pictures a step; older checkpoints do not say


def step_folder(root: Path, step: int) -> Path:
    return root / f"step_{step:08d}"


def read_manifest(folder: Path) -> Manifest:
    """Raises UserError if ``folder`` is no complete checkpoint that this version can read."""
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest = Manifest(**values)
    except OSError:
        raise UserError(f"{folder} is not a complete checkpoint: it has no {MANIFEST}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / MANIFEST} cannot be read ({error}); choose another checkpoint") from None
    if manifest.version != VERSION:
        raise UserError(f"{folder} was written by another version (format {manifest.version}, not {VERSION})")
    for name, size in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(f"{path} is missing or truncated; choose another checkpoint")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Add the sizes of the files and write the manifest, the last file of a checkpoint."""
    files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    values = dataclasses.asdict(dataclasses.replace(manifest, files=files))
    (folder / MANIFEST).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def find(root: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if _NAME.fullmatch(p.name) and (p / MANIFEST).is_file())


def resolve(path: Path) -> Path:
    """The checkpoint that a user's path means: a checkpoint itself, or the newest of a run folder.

    Raises:
        UserError: there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    for root in (path / "checkpoints", path):
        found = find(root)
        if found:
            return found[-1]
    raise UserError(f"there is no complete checkpoint at {path}: give a run folder or one of its checkpoints/step_…")


def prune(root: Path, keep_last: int, keep_best: bool) -> list[Path]:
    """Delete all but the newest ``keep_last`` (at least one) checkpoints and the best. Returns what was deleted."""
    found = find(root)
    keep = set(found[-max(1, keep_last) :])
    if keep_best:
        scores = {path: score for path in found if (score := _score(path)) is not None}
        if scores:
            keep.add(max(scores, key=lambda path: scores[path]))
    deleted = [path for path in found if path not in keep]
    for path in deleted:
        (path / MANIFEST).unlink()  # first, so that a half-deleted folder never counts
        shutil.rmtree(path)
    return deleted


def _score(folder: Path) -> float | None:
    """The score of a checkpoint, as far as it can be read: a damaged one must not stop the training that prunes."""
    try:
        score = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["score"]
        return None if score is None else float(score)
    except (OSError, ValueError, TypeError, KeyError):
        return None
