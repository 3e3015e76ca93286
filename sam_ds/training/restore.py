"""Going on from a checkpoint: which one, what of it counts, and what the user should know."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from sam_ds.config import recipe_file
from sam_ds.config.errors import UserError
from sam_ds.config.schema import Recipe
from sam_ds.engine import checkpoint, distributed
from sam_ds.engine.engine import Engine
from sam_ds.engine.watchdog import watchdog
from sam_ds.storage import checkpoints, remote
from sam_ds.training.state import RunFolder, TrainState


def restore(
    engine: Engine, folder: RunFolder, sources: list[Path], data: str
) -> tuple[TrainState, Path | None, list[str]]:
    """The state to go on from, the checkpoint that had it, and what the user should know of it.

    A damaged checkpoint of this run is set aside, and its copy in ``train.mirror`` taken, or the one before it.
    Collective.

    Args:
        sources: the checkpoints to try, in order.
        data: the fingerprint of the pictures.

    Raises:
        DamagedError: there is none to take.
        UserError: the one to take is of another training.
    """
    notes: list[str] = []
    damaged: list[Path] = []
    while sources:
        source, *others = sources
        try:
            manifest = checkpoint.load(engine, source)
        except checkpoint.DamagedError as error:
            if not folder.owns(source):
                raise
            # What was fetched and is damaged again is not fetched again: it is this disk that damages it.
            mirror = "" if source in damaged else engine.recipe.train.mirror
            damaged.append(source)
            sources, more = distributed.on_main(partial(_instead, source, others, mirror), watchdog.meet)
            if not sources:
                raise checkpoint.DamagedError("; ".join([str(error), *more])) from None
            notes += [f"damaged, set aside: {error}", *more]
            continue
        return _state_of(engine, source, manifest, data), source, [*notes, *_notes_of(engine, source, manifest)]
    return TrainState(data=data), None, notes


def _instead(source: Path, others: list[Path], mirror: str) -> tuple[list[Path], list[str]]:
    """What to try in place of a damaged checkpoint, which is set aside if there is anything, and what to know."""
    fetched: list[Path] = []
    notes: list[str] = []
    if mirror:
        after = checkpoints.step_of(others[0]) if others else -1
        try:
            fetched, notes = remote.ask(mirror, lambda there: there.pull(source.parent, after, watchdog.progress))
        except UserError as error:
            notes = [str(error)]  # what is here must do
    sources = [*fetched, *others]
    if sources and source not in fetched:
        checkpoints.set_aside(source)
    return sources, notes


def _state_of(engine: Engine, source: Path, manifest: checkpoints.Manifest, data: str) -> TrainState:
    if manifest.progress.get("data", data) != data:
        raise UserError(
            f"{source} comes from a training on other pictures, or more or fewer of them: give its --data and --val, "
            "or choose another --output and start from its weights with model.init"
        )
    return TrainState(**{**manifest.progress, "data": data, "step": manifest.step})


def _notes_of(engine: Engine, source: Path, manifest: checkpoints.Manifest) -> list[str]:
    steps, notes = engine.recipe.train.steps, [f"going on from {source}"]
    changed = changed_settings(manifest.recipe, engine.recipe)
    if changed:
        notes.append(f"other settings than before step {manifest.step}: {changed}")
    saved = manifest.world_size, manifest.zero_stage, manifest.precision
    own = distributed.world_size(), engine.config.zero_stage, engine.config.precision
    if saved != own:
        before, now = (f"{ranks} ranks, ZeRO-{stage}, {precision}" for ranks, stage, precision in (saved, own))
        mixed = ", mixed with others" if engine.recipe.classify.mixup or engine.recipe.classify.cutmix else ""
        notes.append(f"saved by {before}, now {now}: the same pictures in the same order{mixed}, rounded another way")
    if manifest.step >= steps:
        notes.append(f"already trained to step {manifest.step} of {steps}: set train.steps higher to go on")
    return notes


def changed_settings(saved: dict[str, Any], recipe: Recipe) -> str:
    """The settings that differ from those of a checkpoint's recipe, as text; "" if none does."""
    try:
        before = recipe_file.flatten(recipe_file.from_dict(saved, "the checkpoint's recipe"))
    except UserError as error:
        return f"not comparable ({error})"
    now = recipe_file.flatten(recipe)
    return ", ".join(f"{name} {before[name]} -> {now[name]}" for name in now if before[name] != now[name])
