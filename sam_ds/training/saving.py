"""Checkpoints of a training: written beside it, and never a reason to stop it."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread

from sam_ds.config.schema import TrainConfig
from sam_ds.engine import checkpoint, distributed
from sam_ds.engine.engine import Engine
from sam_ds.storage import checkpoints
from sam_ds.storage.remote import Mirror
from sam_ds.tracking.tracker import Tracker
from sam_ds.training.progress import Progress
from sam_ds.training.starts import Starts
from sam_ds.training.state import RunFolder, TrainState


class Saver:
    """Has one checkpoint under way at a time."""

    def __init__(
        self,
        engine: Engine,
        folder: RunFolder,
        train: TrainConfig,
        tracker: Tracker,
        progress: Progress,
        starts: Starts,
        step: int,
    ) -> None:
        """``step``: the one that the training goes on from, which needs no saving."""
        self._engine, self._folder, self._train = engine, folder, train
        self._tracker, self._progress, self._starts = tracker, progress, starts
        self._saving: checkpoint.Saving | None = None
        self._began = 0.0
        self._copying: Thread | None = None
        self._newest = self._copied = Path()
        self.last_step = step  # that was begun to be saved, or loaded

    def start(self, state: TrainState, score: float | None) -> str:
        """Begin to save; where that is impossible, go on. Collective.

        Returns as ``finish``, which it waits for where the recipe wants no writing beside the training.
        """
        trouble = self.finish()
        if trouble:
            return trouble
        self._began = time.perf_counter()
        self.last_step = state.step
        try:
            self._saving = checkpoint.Saving(
                self._engine, self._folder.checkpoints, state.step, score, state.progress()
            )
        except checkpoint.SaveError as error:
            self._not_saved(state.step, error)
        trouble = "" if self._train.async_save else self.finish()
        self._tracker.metrics(state.step, {"save/stall_s": time.perf_counter() - self._began})
        return trouble

    def busy(self) -> bool:
        """Whether this rank still writes."""
        return self._saving is not None and self._saving.busy()

    def finish(self) -> str:
        """Wait for the checkpoint that is under way, if one is, and delete those that are not to be kept. Collective.

        Returns why what was saved is no state to go on from, or "".
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return ""
        try:
            path = saving.finish()
        except checkpoint.SaveError as error:
            self._not_saved(saving.step, error)
            return str(error) if isinstance(error, checkpoint.NotFiniteError) else ""
        if distributed.is_main():
            self._starts.progressed()
            self._keep(path)
        self._tracker.metrics(saving.step, {"save/seconds": time.perf_counter() - self._began})
        self._progress.say(f"saved {path}")
        return ""

    def close(self) -> None:
        """Wait for the copy that is under way, and make the one that is missing."""
        if self._copying is not None:
            self._copying.join()
            if self._newest != self._copied:
                self._copy(self._newest)

    def _keep(self, path: Path) -> None:
        """Delete what is not to be kept any more, and copy what is new; one copy at a time, a thread makes it."""
        self._newest = path
        if self._copying is not None and self._copying.is_alive():
            return  # it reads an older one, which must stay
        train = self._train
        checkpoints.prune(self._folder.checkpoints, train.keep_last, train.keep_best, train.keep_every)
        if train.mirror:
            self._copying = Thread(target=self._copy, args=(path,), daemon=True)
            self._copying.start()

    def _copy(self, path: Path) -> None:
        try:
            Mirror(self._train.mirror).push(path)
            self._copied = path
        except Exception as error:  # of whatever driver the place has
            self._progress.say(f"NOT COPIED to {self._train.mirror}: {path.name}: {error}")

    def _not_saved(self, step: int, error: checkpoint.SaveError) -> None:
        self._tracker.metrics(step, {"save/failed": 1.0})
        self._progress.say(f"NOT SAVED at step {step}, training goes on: {error}")
