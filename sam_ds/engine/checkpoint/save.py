"""Write a checkpoint: all of it beside its place, then one rename."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from sam_ds.config import recipe_file
from sam_ds.engine import distributed
from sam_ds.engine.checkpoint import random_state
from sam_ds.engine.checkpoint.folder import WEIGHTS, Manifest, step_folder, write_manifest
from sam_ds.engine.engine import Engine
from sam_ds.modeling.convert import save_weights


def save(
    engine: Engine, root: Path, step: int, score: float | None = None, progress: dict[str, Any] | None = None
) -> Path:
    """Save everything that the run needs to go on from ``step`` as if it had not stopped. Collective.

    Returns the checkpoint's folder. One of the same step that is there already is replaced.
    """
    final = step_folder(root, step)
    partial = final.with_name(final.name + ".partial")
    if distributed.is_main():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    distributed.barrier()
    # 1. DeepSpeed's files: 16-bit weights, masters, optimizer, loss scaler. It writes its own "latest" too early.
    engine.ds.save_checkpoint(str(root), tag=partial.name, save_latest=False)
    # 2. What it leaves out or rounds: full fp32 weights, frozen ones and buffers among them.
    state = engine.state_dict()
    random_state.save(random_state.path_of(partial, distributed.rank()))
    if distributed.is_main():
        model, rest = engine.split_state(state)
        save_weights(model, partial / WEIGHTS)
        if rest:
            save_weights(rest, partial / "rest.safetensors")
    # 3. Only when every rank has written is it complete; only then has it its name.
    distributed.barrier()
    if distributed.is_main():
        _commit(partial, final, _manifest(engine, step, score, progress or {}))
    distributed.barrier()
    return final


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
        global_batch=engine.config.global_batch(distributed.world_size()),
    )


def _commit(partial: Path, final: Path, manifest: Manifest) -> None:
    write_manifest(partial, manifest)
    for path in partial.iterdir():
        _sync(path)
    _sync(partial)
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    """Wait until the disk has it: a rename must not overtake the data it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
