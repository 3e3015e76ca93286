"""Write a checkpoint: all of it beside its place, then one rename."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sam_ds.config import recipe_file
from sam_ds.config.errors import UserError
from sam_ds.engine import counters, distributed, moments
from sam_ds.engine.checkpoint import moment_files, random_state
from sam_ds.engine.engine import Engine
from sam_ds.modeling.convert import save_weights
from sam_ds.storage.checkpoints import (
    PARTIAL,
    WEIGHTS,
    Manifest,
    commit,
    record,
    step_folder,
    sync,
    write_manifest,
)


class SaveError(Exception):
    """A checkpoint could not be written, on some rank: what is wrong, where, and on which. Older ones are whole."""


def save(
    engine: Engine, root: Path, step: int, score: float | None = None, progress: dict[str, Any] | None = None
) -> Path:
    """Save everything that the run needs to go on from ``step`` as if it had not stopped. Collective.

    Returns the checkpoint's folder. One of the same step that is there already is replaced.

    Raises:
        SaveError: on every rank, if any rank cannot write; what it has written is deleted.
    """
    partial = step_folder(root, step)
    partial = partial.with_name(partial.name + PARTIAL)
    files = Files(engine)
    manifest = _manifest(engine, step, score, progress or {})
    _together(partial, lambda: _make(partial) if distributed.is_main() else None)
    records = _together(partial, lambda: files.write(partial))
    # Only when every rank's files are on their disks is it complete; only then has it its name.
    for own in records:
        manifest.files.update(own)
    finals = _together(partial, lambda: _commit(partial, manifest) if distributed.is_main() else None)
    return finals[0]


class Files:
    """What this rank will write, copied to the host: training may go on. Making it is collective."""

    def __init__(self, engine: Engine) -> None:
        rank = distributed.rank()
        self._model, self._rest = engine.split_state(engine.state_dict())  # on rank 0; empty elsewhere
        # Without ZeRO every rank has all moments.
        self._moments = list(moments.copies(engine.ds)) if engine.config.zero_stage or rank == 0 else []
        self._random = random_state.read()
        self._rank = rank

    def write(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Write the files and wait for the disk; returns their records for the manifest."""
        random_path, moments_path = random_state.path_of(folder, self._rank), moment_files.path_of(folder, self._rank)
        random_state.write(self._random, random_path)
        moment_files.write(moments_path, self._moments)
        paths = [random_path, moments_path]
        for name, weights in ((WEIGHTS, self._model), ("rest.safetensors", self._rest)):
            if weights:
                save_weights(weights, folder / name)
                paths.append(folder / name)
        for path in (*paths, folder):
            sync(path)
        return record(folder, [path.name for path in paths])


def _together(partial: Path, work: Callable[[], Any]) -> list[Any]:
    """What ``work`` gives on each rank, or SaveError on every rank if it fails on any. Collective."""
    result, problem = None, ""
    try:
        result = work()
    except (OSError, UserError, SafetensorError, RuntimeError) as error:  # of Python, ours, of safetensors, of torch
        problem = f"rank {distributed.rank()}: {error}"
    outcomes = distributed.gather((result, problem))
    problems = [text for _, text in outcomes if text]
    if problems:
        if distributed.is_main():
            shutil.rmtree(partial, ignore_errors=True)
        raise SaveError("; ".join(problems))
    return [value for value, _ in outcomes]


def _make(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _commit(partial: Path, manifest: Manifest) -> Path:
    write_manifest(partial, manifest)
    sync(partial)
    return commit(partial)


def _manifest(engine: Engine, step: int, score: float | None, progress: dict[str, Any]) -> Manifest:
    return Manifest(
        step=step,
        world_size=distributed.world_size(),
        zero_stage=engine.config.zero_stage,
        precision=engine.config.precision,
        frozen=engine.frozen,
        recipe=recipe_file.to_dict(engine.recipe),
        shapes=engine.shapes,
        score=score,
        progress=progress,
        counters=counters.read(engine.ds),
        global_batch=engine.config.global_batch(distributed.world_size()),
    )
