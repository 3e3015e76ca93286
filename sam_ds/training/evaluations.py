"""Measuring a training: the model of now and what it must beat, in numbers, a table and pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from sam_ds.config.schema import Recipe
from sam_ds.engine import distributed
from sam_ds.engine.engine import Engine
from sam_ds.evaluation.pictures import draw_curves
from sam_ds.tracking import journal
from sam_ds.tracking.journal import read_metrics
from sam_ds.tracking.tracker import Tracker
from sam_ds.training.state import RunFolder

if TYPE_CHECKING:
    from sam_ds.training.tasks import Kit

UNTRAINED, _STEP = "untrained", "step "  # titles; all others are baselines
_logger = logging.getLogger(__name__)


class Evaluations:
    """Everything measured in a run folder. What is measured already is not measured again, also after a resume."""

    def __init__(self, recipe: Recipe, kit: Kit, folder: RunFolder, tracker: Tracker) -> None:
        self._recipe, self._kit, self._folder, self._tracker = recipe, kit, folder, tracker
        self._unwritten: dict[str, dict[str, float]] = {}  # on rank 0; its disk may be full

    def measure_baselines(self, engine: Engine, say: Callable[[str], None]) -> None:
        """What a model must beat. Collective."""
        if any(_is_baseline(title) for title in self._known()):
            return
        say("evaluating the baselines")
        for title, metrics in self._kit.baselines(self._recipe, engine.device).items():
            self._note(title, metrics)

    def measure(self, engine: Engine, step: int, say: Callable[[str], None]) -> float:
        """The model of now, once a step; returns its score. Collective."""
        title = f"{_STEP}{step}" if step else UNTRAINED
        known = self._known()
        if title not in known:
            say(f"evaluating after {step} steps")
            pictures = self._folder.pictures / f"step_{step:08d}"
            metrics, drawn = self._kit.evaluate(engine.inference_model(), self._recipe, engine.device, pictures)
            self._note(title, metrics)
            self._tracker.metrics(step, {f"eval/{name}": value for name, value in metrics.items()})
            for path in drawn:
                self._tracker.artifact(path)
            known = known | {title: metrics}
        return self._kit.score(self._recipe, known[title])

    def is_best(self, score: float | None) -> bool:
        """Whether no other step so far scored better. The same answer on every rank."""
        steps = [metrics for title, metrics in self._known().items() if title.startswith(_STEP)]
        return score is not None and score >= max(self._kit.score(self._recipe, metrics) for metrics in steps)

    def report(self, step: int) -> str:
        """The table of before and after, beside the baselines; draws the curves. On one rank."""
        known = self._folder.evaluations() | self._unwritten
        shown = [title for title in known if _is_baseline(title)] + [UNTRAINED, f"{_STEP}{step}"]
        curves = self._folder.pictures / "curves.png"
        try:
            draw_curves(read_metrics(self._folder.path / journal.NAME), curves)
            self._tracker.artifact(curves)
        except OSError as error:
            _logger.warning("not drawn: %s (%s)", curves, error.strerror)
        return self._kit.table({title: known[title] for title in dict.fromkeys(shown) if title in known})

    def _known(self) -> dict[str, dict[str, float]]:
        known: dict[str, dict[str, float]] = distributed.on_main(lambda: self._folder.evaluations() | self._unwritten)
        return known

    def _note(self, title: str, metrics: dict[str, float]) -> None:
        if distributed.is_main():
            try:
                self._folder.add_evaluation(title, metrics)
            except OSError as error:
                self._unwritten[title] = metrics
                _logger.warning("the evaluation of %s is not written down (%s)", title, error.strerror)

    def forget(self, step: int) -> None:
        """Drop what was measured of later steps. On one rank."""
        self._unwritten = {}
        try:
            self._folder.forget(step)
        except OSError as error:
            _logger.warning("evaluations after step %d stay written down (%s)", step, error.strerror)


def _is_baseline(title: str) -> bool:
    return title != UNTRAINED and not title.startswith(_STEP)
