"""Read a checkpoint back, or say in one line why it does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam_ds.config import recipe_file
from sam_ds.config.errors import UserError
from sam_ds.engine import distributed
from sam_ds.engine.checkpoint import random_state
from sam_ds.engine.checkpoint.folder import WEIGHTS, Manifest, read_manifest
from sam_ds.engine.engine import Engine
from sam_ds.modeling.convert import read_weights

# Settings that make another run of it: what it learns from could not be continued in another model or stream.
_IDENTITY = ("name", "task", "seed", "model.preset")


def load(engine: Engine, folder: Path) -> Manifest:
    """Restore weights, optimizer, loss scaler, buffers and random state from a complete checkpoint. Collective.

    Raises:
        UserError: it is incomplete, of another recipe or model, or was written by another number of ranks, ZeRO
            stage, precision or global batch.
    """
    manifest = read_manifest(folder)
    _check_recipe(engine, manifest, folder)
    _check_shapes(engine, manifest, folder)
    _check_layout(engine, manifest, folder)
    state = engine.join_state(read_weights(folder / WEIGHTS), _rest(folder))
    # 1. DeepSpeed's files fit the phase they were saved in: start it from these weights, frozen ones included.
    engine.start_phase(manifest.frozen, state)
    # 2. With a tag that is not there DeepSpeed returns None and trains from where it is.
    found, _ = engine.ds.load_checkpoint(str(folder.parent), tag=folder.name, load_lr_scheduler_states=False)
    if found is None:
        raise UserError(f"DeepSpeed finds no checkpoint of its own in {folder}; choose another checkpoint")
    # 3. Buffers are no part of what every ZeRO stage restores.
    buffers = dict(engine.task.named_buffers())
    for name, value in state.items():
        if name in buffers:
            buffers[name].copy_(value)
    random_state.restore(random_state.path_of(folder, distributed.rank()))
    return manifest


def _rest(folder: Path) -> dict[str, Any]:
    path = folder / "rest.safetensors"
    return read_weights(path) if path.is_file() else {}


def _check_recipe(engine: Engine, manifest: Manifest, folder: Path) -> None:
    saved = _flat(manifest.recipe)
    own = _flat(recipe_file.to_dict(engine.recipe))
    for name in _IDENTITY:
        if saved.get(name) != own[name]:
            raise UserError(
                f"{folder} is of another run: {name} is {saved.get(name)!r} there and {own[name]!r} here; "
                f"use its recipe, another --output, or start from its weights (--set model.init={folder / WEIGHTS})"
            )


def _check_shapes(engine: Engine, manifest: Manifest, folder: Path) -> None:
    for name in sorted(manifest.shapes.keys() | engine.shapes.keys()):
        saved, own = manifest.shapes.get(name), engine.shapes.get(name)
        if saved != own:
            raise UserError(
                f"{folder} is of another model: {name} is {saved or 'absent'} there and {own or 'absent'} here"
            )


def _check_layout(engine: Engine, manifest: Manifest, folder: Path) -> None:
    own = {
        "ranks": distributed.world_size(),
        "ZeRO stage": engine.config.zero_stage,
        "precision": engine.config.precision,
    }
    saved = dict(zip(own, (manifest.world_size, manifest.zero_stage, manifest.precision), strict=True))
    for name, value in own.items():
        if saved[name] != value:
            raise UserError(
                f"{folder} was saved with {name} {saved[name]}, not {value}: resume with the same, or start a new run "
                f"from its weights (--set model.init={folder / WEIGHTS})"
            )
    batch = engine.config.global_batch(distributed.world_size())
    if manifest.global_batch not in (None, batch):
        raise UserError(
            f"{folder} was saved with a global batch of {manifest.global_batch} pictures, not {batch}: the stream and "
            f"the schedule could not go on; set train_batch_size {manifest.global_batch} (micro batch × accumulation × "
            f"ranks) in the DeepSpeed config, or start a new run from its weights (--set model.init={folder / WEIGHTS})"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
