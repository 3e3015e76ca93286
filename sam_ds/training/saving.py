"""Checkpoints of a training: written beside it, and never a reason to stop it."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Lock, Thread

from sam_ds.config.schema import TrainConfig
from sam_ds.engine import checkpoint, distributed
from sam_ds.engine.engine import Engine
from sam_ds.storage import checkpoints
from sam_ds.storage.remote import Mirror
from sam_ds.tracking.tracker import Tracker
from sam_ds.training.progress import Progress
from sam_ds.training.starts import Starts
from sam_ds.training.state import RunFolder, TrainState

_PATIENCE = 60.0  # seconds that the end of a training waits for a thread


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
        self._stall = 0.0
        self._copying: Thread | None = None
        self._lock = Lock()
        self._to_copy: list[Path] = []  # the first is under way
        self._dropped: list[int] = []  # steps that are not yet deleted where copies lie
        self.last_step = self.saved_step = step  # that was begun to be saved, and is saved

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
        self._stall = time.perf_counter() - self._began
        return "" if self._train.async_save else self.finish()

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
        began = time.perf_counter()
        try:
            path = saving.finish()
        except checkpoint.SaveError as error:
            self._not_saved(saving.step, error)
            return str(error) if isinstance(error, checkpoint.NotFiniteError) else ""
        self.saved_step = saving.step
        if distributed.is_main():
            self._tidy_up(path)
        now = time.perf_counter()
        values = {"save/seconds": now - self._began, "save/stall_s": self._stall + now - began}
        self._tracker.metrics(saving.step, values)
        self._progress.say(f"saved {path}")
        return ""

    def add_score(self, step: int, score: float) -> None:
        """Give the checkpoint of ``step`` its score, if it was saved before it was measured, as by a job that stops."""
        folder = checkpoints.step_folder(self._folder.checkpoints, step)
        if not distributed.is_main() or not folder.exists():
            return
        try:
            checkpoints.add_score(folder, score)
        except OSError as error:  # one rank must not fail alone
            self._progress.say(f"{folder} does not get its score, and may not be kept as the best: {error}")

    def close(self) -> None:
        """Wait a limited time for the copy that is under way, and where the training has failed, for a checkpoint.

        That checkpoint stays without a name, but an interpreter that ends while a thread is in torch aborts.
        """
        if self._saving is not None:
            self._saving.wait(_PATIENCE)
        if self._copying is None:
            return
        self._copying.join(_PATIENCE)
        if not self._copying.is_alive() and self._to_copy:  # it came as the thread ended
            self._start_copying()
            self._copying.join(_PATIENCE)
        if self._copying.is_alive():
            self._progress.say(f"NOT COPIED to {self._train.mirror}: the newest checkpoint; the one here is whole")

    def _start_copying(self) -> None:
        self._copying = Thread(target=self._copy, daemon=True)
        self._copying.start()

    def _tidy_up(self, path: Path) -> None:
        """Delete what is not to be kept any more, and have copied what is new. On one rank: it must not fail alone."""
        train, copying = self._train, self._copying is not None and self._copying.is_alive()
        try:
            self._starts.progressed()
            spare = self._to_copy[:1] if copying else []  # a thread reads it
            dropped = checkpoints.prune(
                self._folder.checkpoints, train.keep_last, train.keep_best, train.keep_every, spare
            )
        except OSError as error:
            self._progress.say(f"not tidied up: {error}")
            dropped = []
        if train.mirror:
            self._dropped += [checkpoints.step_of(gone) for gone in dropped]
            with self._lock:
                self._to_copy = [*self._to_copy[: int(copying)], path]
            if not copying:
                self._start_copying()

    def _copy(self) -> None:
        """Copy what is to be copied, until nothing is."""
        while self._to_copy:
            path, dropped = self._to_copy[0], list(self._dropped)
            try:
                Mirror(self._train.mirror).push(path, dropped)
                self._dropped = [step for step in self._dropped if step not in dropped]
            except Exception as error:  # of whatever driver the place has
                self._progress.say(f"NOT COPIED to {self._train.mirror}: {path.name}: {error}")
            with self._lock:
                self._to_copy = self._to_copy[1:]

    def went_back(self, step: int) -> None:
        """The training goes on from another checkpoint."""
        self.last_step = self.saved_step = step

    def _not_saved(self, step: int, error: checkpoint.SaveError) -> None:
        self.last_step = self.saved_step  # to be tried again
        self._tracker.metrics(step, {"save/failed": 1.0})
        self._progress.say(f"NOT SAVED at step {step}, training goes on: {error}")
