"""Read a checkpoint back, or say in one line why it does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam_ds.config import recipe_file
from sam_ds.config.errors import UserError
from sam_ds.engine import counters, distributed, moments
from sam_ds.engine.checkpoint import moment_files, random_state
from sam_ds.engine.engine import Engine
from sam_ds.modeling.convert import read_weights
from sam_ds.storage.checkpoints import MEAN_WEIGHTS, WEIGHTS, Manifest, damaged, read_manifest

# Settings that make another run of it: what it learns from could not be continued in another model or stream.
_IDENTITY = ("name", "task", "seed", "model.preset")


class DamagedError(UserError):
    """A checkpoint of which a file is not what was written."""


def load(engine: Engine, folder: Path) -> Manifest:
    """Restore weights, their mean, moments, loss scale, buffers and random state from a checkpoint. Collective.

    Any number of ranks, ZeRO stage and precision can load what any other has written.

    Raises:
        DamagedError: it is incomplete, or a file is not what was written.
        UserError: it is of another recipe, model or global batch.
    """
    manifest = _verified(folder)
    _check_recipe(engine, manifest, folder)
    _check_shapes(engine, manifest, folder)
    _check_batch(engine, manifest, folder)
    state = engine.join_state(read_weights(folder / WEIGHTS), _read(folder / "rest.safetensors"))
    means = engine.join_state(_read(folder / MEAN_WEIGHTS), {})
    # 1. The moments are those of the phase they were saved in: start it from these weights, frozen ones included.
    engine.start_phase(manifest.frozen, state, means)
    counters.restore(engine.ds, manifest.counters)
    if manifest.counters["steps"]:
        with moment_files.opened(folder) as reader:
            moments.restore(engine.ds, reader.read, manifest.counters["steps"])
    random_state.restore(random_state.path_of(folder, distributed.rank()))
    return manifest


def _verified(folder: Path) -> Manifest:
    """The manifest, alike on all ranks, after every file was read and hashed, a share by each rank. Collective."""
    manifest, found = None, []
    try:
        manifest = read_manifest(folder)
        names = sorted(manifest.files)[distributed.rank() :: distributed.world_size()]
        found = damaged(folder, {name: manifest.files[name] for name in names})
    except UserError as error:
        found = [str(error)]
    outcomes = distributed.gather((manifest and manifest.sha256, found))
    problems = [text for _, own in outcomes for text in own]
    if len({sha256 for sha256, _ in outcomes}) > 1:  # first: it is not damaged because one machine does not see it
        raise UserError(f"{folder} is not the same on all machines: is it on storage that all of them share?")
    if problems:
        raise DamagedError(problems[0])
    assert manifest is not None
    return manifest


def _read(path: Path) -> dict[str, Any]:
    """Weights that not every checkpoint has."""
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


def _check_batch(engine: Engine, manifest: Manifest, folder: Path) -> None:
    batch = engine.config.global_batch(distributed.world_size())
    if manifest.global_batch != batch:
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
