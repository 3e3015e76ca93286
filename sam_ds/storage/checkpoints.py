"""The folders of checkpoints: names, manifests, which are complete, which are damaged, which to keep.

``checkpoints/step_00001000/`` holds ``weights.safetensors`` (the model alone, fp32, released names, buffers and frozen
weights included), ``ema.safetensors`` likewise with the mean of the weights where the recipe keeps one,
``rest.safetensors`` where a task trains more than its model, each rank's part of AdamW's moments and its random state,
and, written last, ``complete.json`` with the size and the SHA-256 of every other file and of itself: a folder without
it does not count. No file elsewhere says which is the latest, and so none can be wrong: it is looked up. Nothing is a
pickle that could execute something, and nothing depends on how many ranks wrote it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam_ds.config.errors import UserError
from sam_ds.config.schema import Recipe

MANIFEST = "complete.json"
WEIGHTS = "weights.safetensors"
MEAN_WEIGHTS = "ema.safetensors"
VERSION = 2
PARTIAL = ".partial"  # ends the name of a folder that is being written
OLDER = ".older"  # of one that makes room for another of the same step
DELETED = ".deleted"  # of one that is being deleted
DAMAGED = ".damaged"  # of one that was found to be
_NAME = re.compile(r"step_(\d{8})$")


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds, and what it takes to load it."""

    step: int  # optimizer steps done; the next one to train
    world_size: int  # it, the stage and the precision: for people, any other can load it
    zero_stage: int
    precision: str
    frozen: bool  # saved while the encoder was frozen
    recipe: dict[str, Any]
    shapes: dict[str, list[int]]  # of the task's parameters
    score: float | None = None  # of the evaluation at this step, if there was one
    progress: dict[str, Any] = field(default_factory=dict)  # what the trainer counts
    counters: dict[str, Any] = field(default_factory=dict)  # and what DeepSpeed counts
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # "bytes" and "sha256" of every other file
    version: int = VERSION
    global_batch: int = 0  # pictures a step
    sha256: str = ""  # of the manifest itself; ``write_manifest`` adds it


def step_folder(root: Path, step: int) -> Path:
    return root / f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(folder.name.removeprefix("step_"))


def read_manifest(folder: Path) -> Manifest:
    """Raises UserError if ``folder`` is no complete checkpoint that this version can read."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("version") != VERSION:
            raise UserError(f"{folder} was written by another version (format {values.get('version')}, not {VERSION})")
        manifest = Manifest(**values)
        if manifest.sha256 != _digest(values):
            raise UserError(f"{path} is damaged: it is not what was written (its SHA-256 differs)")
        _check(manifest)
    except FileNotFoundError:
        raise UserError(f"{folder} is not a complete checkpoint: it has no {MANIFEST}") from None
    except UserError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it cannot be read ({error})") from None
    return manifest


def _check(manifest: Manifest) -> None:
    """Raises ValueError, TypeError, KeyError or AttributeError for what no save writes, whoever made up its hash."""
    numbers = (manifest.step, manifest.world_size, manifest.zero_stage, manifest.global_batch)
    if not all(type(number) is int for number in numbers):
        raise ValueError("a count is no whole number")
    for name, known in manifest.files.items():
        if name != Path(name).name or "\0" in name or name in ("", ".."):
            raise ValueError(f"{name!r} is no file of the folder")
        if type(known["bytes"]) is not int or type(known["sha256"]) is not str:
            raise ValueError(f"size or hash of {name!r} is missing")
    for shape in (*manifest.shapes.values(), [len(manifest.recipe), len(manifest.progress), len(manifest.counters)]):
        if not all(type(side) is int for side in shape):
            raise ValueError("a shape is no list of whole numbers")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, the last file of a checkpoint, or another in its place, in one go."""
    values = dataclasses.asdict(manifest)
    text = json.dumps(values | {"sha256": _digest(values)}, indent=1) + "\n"
    partial = folder / (MANIFEST + PARTIAL)
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    os.replace(partial, folder / MANIFEST)
    sync(folder)


def add_score(folder: Path, score: float) -> None:
    """Give a checkpoint that has none the score of its evaluation.

    Raises:
        OSError: it cannot be written; the checkpoint is as it was.
        UserError: it is not complete.
    """
    manifest = read_manifest(folder)
    if manifest.score is None:
        write_manifest(folder, dataclasses.replace(manifest, score=score))


def _digest(values: dict[str, Any]) -> str:
    """Of all of a manifest but its own hash."""
    others = {name: value for name, value in values.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def record(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What a manifest says of files: their size and hash."""
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": _hash(folder / name)} for name in names}


def damaged(folder: Path, files: dict[str, dict[str, Any]]) -> list[str]:
    """Of the files of a manifest, those that are not what was written, and how."""
    found = []
    for name, known in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != known["bytes"]:
                found.append(f"{path} has {size} of {known['bytes']} bytes")
            elif _hash(path) != known["sha256"]:
                found.append(f"{path} is not what was written (its SHA-256 differs)")
        except OSError as error:
            found.append(f"{path} cannot be read ({error.strerror})")
    return found


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Wait until the disk has a file or a folder's names: a rename must not overtake the data that it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def space_for_one(recipe: Recipe, parameters: int) -> int:
    """Bytes of a checkpoint: the weights, AdamW's two moments, and the weights' mean if one is kept, in fp32."""
    return 4 * (3 + (recipe.optim.ema_decay > 0)) * parameters


def space_for_all(recipe: Recipe, parameters: int) -> int:
    """Bytes of all checkpoints that a training has at once, at most: one is written before another is deleted."""
    train = recipe.train

    def times(*every: int) -> int:
        """How often a training comes to a step that is a multiple of each; of 0 it never does."""
        common = math.lcm(train.keep_every, *every)
        return train.steps // common if common else 0

    spaced = times(train.save_every)  # of those that are saved, what ``keep_every`` keeps
    if train.keep_best:  # a better score has one saved too
        spaced += times(train.eval_every) - times(train.save_every, train.eval_every)
    return space_for_one(recipe, parameters) * (train.keep_last + train.keep_best + spaced + 1)


def find(root: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if _NAME.fullmatch(p.name) and (p / MANIFEST).is_file())


def commit(partial: Path) -> Path:
    """Give a complete folder its name. One that has it already makes room, and is deleted last.

    A kill between the two renames leaves ``partial`` complete: ``recover`` gives it its name then.
    """
    final = partial.with_name(partial.name.removesuffix(PARTIAL))
    older = final.with_name(final.name + OLDER)
    shutil.rmtree(older, ignore_errors=True)
    if final.exists():
        os.replace(final, older)
    try:
        os.replace(partial, final)
    except OSError:
        if older.exists():
            os.replace(older, final)
        raise
    sync(final.parent)
    shutil.rmtree(older, ignore_errors=True)
    return final


def recover(root: Path) -> list[Path]:
    """Put right what a save or a deletion that was killed has left: whole folders get their name, the others go.

    Returns folders that have lost their manifest, which a save never leaves: they are set aside.
    """
    for partial in sorted(root.glob(f"step_*{PARTIAL}")):
        try:
            manifest = read_manifest(partial)
            whole = not damaged(partial, manifest.files)
        except UserError:
            whole = False
        if whole:
            commit(partial)
        else:
            shutil.rmtree(partial)
    for older in root.glob(f"step_*{OLDER}"):
        final = older.with_name(older.name.removesuffix(OLDER))
        if final.exists():
            shutil.rmtree(older)
        else:  # what was to replace it is not whole
            os.replace(older, final)
    for doomed in root.glob(f"step_*{DELETED}"):
        shutil.rmtree(doomed)
    lost = [p for p in sorted(root.glob("step_*")) if _NAME.fullmatch(p.name) and not (p / MANIFEST).is_file()]
    for folder in lost:
        set_aside(folder)
    return lost


def set_aside(folder: Path) -> None:
    """Rename a damaged checkpoint, so that it never counts and nothing is lost."""
    number = 0
    while (aside := folder.with_name(f"{folder.name}{DAMAGED}{number or ''}")).exists():
        number += 1
    os.replace(folder, aside)


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


def prune(root: Path, keep_last: int, keep_best: bool, keep_every: int = 0, spare: Collection[Path] = ()) -> list[Path]:
    """Delete all checkpoints but the newest ``keep_last`` (at least one), the best, and those of ``keep_every`` steps.

    Returns what was deleted; ``spare`` is left for another time.
    """
    found = find(root)
    keep = set(found[-max(1, keep_last) :])
    if keep_every:
        keep.update(path for path in found if step_of(path) % keep_every == 0)
    if keep_best:
        scores = {path: score for path in found if (score := _score(path)) is not None}
        if scores:
            keep.add(max(scores, key=lambda path: scores[path]))
    deleted = [path for path in found if path not in keep and path not in spare]
    for path in deleted:
        doomed = path.with_name(path.name + DELETED)  # renamed first, so that a half-deleted folder never counts
        os.replace(path, doomed)
        shutil.rmtree(doomed)
    return deleted


def _score(folder: Path) -> float | None:
    """The score of a checkpoint, as far as it can be read: a damaged one must not stop the training that prunes."""
    try:
        score = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["score"]
        return None if score is None else float(score)
    except (OSError, ValueError, TypeError, KeyError):
        return None
