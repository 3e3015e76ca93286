"""Write a checkpoint: all of it beside its place, then one rename."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from sam_ds.config import recipe_file
from sam_ds.config.errors import UserError
from sam_ds.engine import counters, distributed, moments
from sam_ds.engine.checkpoint import moment_files, random_state
from sam_ds.engine.engine import Engine
from sam_ds.modeling.convert import save_weights
from sam_ds.storage.checkpoints import (
    MEAN_WEIGHTS,
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


class NotFiniteError(SaveError):
    """The weights or AdamW's moments hold numbers that are not finite: this is no state to go on from."""


def save(
    engine: Engine, root: Path, step: int, score: float | None = None, progress: dict[str, Any] | None = None
) -> Path:
    """``Saving`` and ``finish`` at once. Collective."""
    return Saving(engine, root, step, score, progress).finish()


class Saving:
    """Writes everything that the run needs to go on from ``step`` as if it had not stopped.

    All of it is copied to the host; then the training may go on, and ``finish`` when ``busy`` is False on every rank.
    """

    def __init__(
        self,
        engine: Engine,
        root: Path,
        step: int,
        score: float | None = None,
        progress: dict[str, Any] | None = None,
    ) -> None:
        """Collective.

        Raises:
            SaveError: on every rank, if there is no space for it, or no folder can be made.
        """
        self.step = step
        final = step_folder(root, step)
        self._partial = final.with_name(final.name + PARTIAL)
        self._files = Files(engine)
        self._manifest = _manifest(engine, step, score, progress or {})
        needed = sum(_together(self._partial, self._files.num_bytes))
        _together(self._partial, lambda: _make(self._partial, needed) if distributed.is_main() else None)
        self._written = _Outcome(problem="the writing thread ended without a word")
        self._thread = Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        self._written = _attempt(lambda: (self._files.not_finite(), self._files.write(self._partial)))

    def busy(self) -> bool:
        """Whether this rank still writes."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Wait until this rank has written, but no longer than so long."""
        self._thread.join(seconds)

    def finish(self) -> Path:
        """Wait for all ranks, and give the checkpoint its name. Collective.

        Returns its folder. One of the same step that was there already is replaced.

        Raises:
            SaveError: on every rank, if any rank could not write; what it has written is deleted.
            NotFiniteError: likewise, for what is not worth keeping.
        """
        self._thread.join()
        outcomes = _agree(self._partial, self._written)
        # Only when every rank's files are on their disks is it complete; only then has it its name.
        for not_finite, records in outcomes:
            if not_finite:
                _discard(self._partial)
                raise NotFiniteError(f"{not_finite[0]} is not finite")
            self._manifest.files.update(records)
        finals = _together(
            self._partial, lambda: _commit(self._partial, self._manifest) if distributed.is_main() else None
        )
        return finals[0]


class Files:
    """What this rank will write, copied to the host. Making it is collective."""

    def __init__(self, engine: Engine) -> None:
        rank = distributed.rank()
        self._model, self._rest = engine.split_state(engine.state_dict())  # on rank 0; empty elsewhere
        self._mean = engine.split_state(engine.mean_state_dict())[0]  # likewise; empty where there is none
        # Without ZeRO every rank has all moments.
        self._moments = list(moments.copies(engine.ds)) if engine.config.zero_stage or rank == 0 else []
        self._random = random_state.read()
        self._rank = rank

    def num_bytes(self) -> int:
        """Of the tensors; what else is in the files is small beside them."""
        return sum(tensor.nbytes for _, tensor in self._tensors())

    def not_finite(self) -> list[str]:
        """The tensors with a NaN or an infinity."""
        return [name for name, tensor in self._tensors() if not bool(torch.isfinite(tensor).all())]

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._model.items()
        yield from self._rest.items()
        yield from ((f"the mean of {name}", mean) for name, mean in self._mean.items())
        for part, held in self._moments:
            yield from ((f"{key} of {part.name}", moment) for key, moment in held.items())

    def write(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Write the files and wait for the disk; returns their records for the manifest."""
        random_path, moments_path = random_state.path_of(folder, self._rank), moment_files.path_of(folder, self._rank)
        random_state.write(self._random, random_path)
        moment_files.write(moments_path, self._moments)
        paths = [random_path, moments_path]
        files = ((WEIGHTS, self._model), ("rest.safetensors", self._rest), (MEAN_WEIGHTS, self._mean))
        for name, weights in files:
            if weights:
                save_weights(weights, folder / name)
                paths.append(folder / name)
        for path in (*paths, folder):
            sync(path)
        return record(folder, [path.name for path in paths])


@dataclass(frozen=True)
class _Outcome:
    """What some work gave on one rank, or why it failed."""

    value: Any = None
    problem: str = ""


def _attempt(work: Callable[[], Any]) -> _Outcome:
    try:
        return _Outcome(work())
    except (OSError, UserError, SafetensorError, RuntimeError) as error:  # of Python, ours, of safetensors, of torch
        return _Outcome(problem=f"rank {distributed.rank()}: {error}")


def _agree(partial: Path, own: _Outcome) -> list[Any]:
    """What the ranks got, or SaveError on every rank if any failed. Collective."""
    outcomes: list[_Outcome] = distributed.gather(own)
    problems = [outcome.problem for outcome in outcomes if outcome.problem]
    if problems:
        _discard(partial)
        raise SaveError("; ".join(problems))
    return [outcome.value for outcome in outcomes]


def _together(partial: Path, work: Callable[[], Any]) -> list[Any]:
    """What ``work`` gives on each rank, or SaveError on every rank if it fails on any. Collective."""
    return _agree(partial, _attempt(work))


def _discard(partial: Path) -> None:
    if distributed.is_main():
        shutil.rmtree(partial, ignore_errors=True)


def _make(partial: Path, needed: int) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _check_space(partial, needed)


def _check_space(folder: Path, needed: int) -> None:
    """Raises OSError if ``needed`` bytes do not fit where ``folder`` lies."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{folder.parent} has {free / 1e9:.2f} GB free, and a checkpoint needs {needed / 1e9:.2f}")


def _commit(partial: Path, manifest: Manifest) -> Path:
    write_manifest(partial, manifest)
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
