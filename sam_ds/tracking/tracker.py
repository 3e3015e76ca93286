"""Where a run reports to: ``metrics.jsonl`` always, MLflow and TensorBoard as the recipe says."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sam_ds.config.schema import Recipe
from sam_ds.tracking.hosts import HostMonitor
from sam_ds.tracking.journal import Journal
from sam_ds.tracking.mlflow import MlflowWriter


class Tracker(Protocol):
    """What the training loop knows of tracking. Calls return at once and never fail because of a server."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Report numbers, after ``step`` optimizer steps. Names are paths: "loss/dice", "eval/miou@1"."""
        ...

    def resumed(self, step: int) -> None:
        """What was reported of later steps is void: the run went back."""
        ...

    def artifact(self, path: Path) -> None:
        """Report a file, best one in the run folder. It is read later, so it must stay."""
        ...

    def close(self, failed: bool = False) -> None:
        """The run is over. Waits a limited time for what is still on its way."""
        ...


class NullTracker:
    """Reports nothing: the tracker of most ranks."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def resumed(self, step: int) -> None:
        pass

    def artifact(self, path: Path) -> None:
        pass

    def close(self, failed: bool = False) -> None:
        pass


class _OfHost(NullTracker):
    """Looks after the host, and reports nothing of the training."""

    def __init__(self, run_dir: Path, every: float) -> None:
        self._monitor = HostMonitor(run_dir, every)

    def close(self, failed: bool = False) -> None:
        self._monitor.close()


class _All:
    """Reports to the journal and then to all others."""

    def __init__(self, journal: Journal, others: Sequence[Tracker]) -> None:
        self._journal = journal
        self._others = others

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._journal.metrics(step, values)
        for other in self._others:
            other.metrics(step, values)

    def resumed(self, step: int) -> None:
        self._journal.resumed(step)
        for other in self._others:
            other.resumed(step)

    def artifact(self, path: Path) -> None:
        self._journal.artifact(path)
        for other in self._others:
            other.artifact(path)

    def close(self, failed: bool = False) -> None:
        self._journal.close()
        for other in self._others:
            other.close(failed)


def open_tracker(
    run_dir: Path,
    recipe: Recipe,
    params: Mapping[str, Any],
    resumed_at: int | None = None,
    is_main: bool = True,
    local_rank: int = 0,
) -> Tracker:
    """The trackers of a run.

    Args:
        run_dir: the run folder, which exists.
        recipe: of which ``tracking`` decides, and which gives the run its name.
        params: what the run was started with, nested, for example {"recipe": …, "deepspeed": …, "environment": …}.
        resumed_at: the number of steps the checkpoint has seen; None for a new run.
        is_main: False on all ranks but one, which then report nothing of the training.
        local_rank: this rank's number on its host. The first one has the host looked after.
    """
    every = recipe.tracking.hosts_every
    # First, so that at the end its last lines are there when MLflow's writer reads the rest.
    others: list[Tracker] = [_OfHost(run_dir, every)] if every and local_rank == 0 else []
    if not is_main:
        return others[0] if others else NullTracker()
    journal = Journal(run_dir, resumed_at)
    if recipe.tracking.mlflow:
        if importlib.util.find_spec("mlflow"):
            name = f"{recipe.name} {run_dir.absolute().name}"
            tracking = recipe.tracking
            others.append(MlflowWriter(run_dir, tracking.experiment, name, flatten(params), tracking.parent))
        else:
            warnings.warn("mlflow is not installed (pip install 'mlflow<3.18'): no MLflow tracking", stacklevel=2)
    if recipe.tracking.tensorboard:
        if importlib.util.find_spec("tensorboard"):
            from sam_ds.tracking.tensorboard import TensorboardTracker

            others.append(TensorboardTracker(run_dir / "tensorboard", resumed_at))
        else:
            warnings.warn("tensorboard is not installed (pip install tensorboard): no TensorBoard", stacklevel=2)
    return _All(journal, others)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as dotted names and texts: {"a": {"b": 1}} becomes {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat
