"""MLflow, in a process of its own that follows ``metrics.jsonl``.

Importing mlflow takes seconds, a call to it 20 ms to minutes (when its server is down), and its threads do not go with
forked data loaders. So the training writes lines to a file and never waits; the writer process
(``mlflow_writer``) sends them on, keeps note of how far it got, and catches up after an outage, after a restart, and
when the training is killed.
"""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Mapping
from pathlib import Path

from sam_ds.tracking import beside

_PATIENCE = 60.0  # seconds that the end of a training waits for what is still to be sent; half of it for a lost server


class MlflowWriter:
    """Starts the writer process; a tracker that itself has nothing to do until the end."""

    def __init__(
        self,
        run_dir: Path,
        experiment: str,
        name: str,
        params: Mapping[str, str],
        parent: str = "",
        patience: float = _PATIENCE,
    ) -> None:
        """``parent``: the name of the MLflow run that this one is shown below; "" for none."""
        self._patience = patience
        job = {"run_dir": str(run_dir.absolute()), "experiment": experiment, "name": name, "parent": parent}
        self._process = beside.start(
            "sam_ds.tracking.mlflow_writer", job | {"params": dict(params), "patience": patience / 2}
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing: the writer reads the journal."""

    def resumed(self, step: int) -> None:
        """Nothing: the writer reads the journal."""

    def artifact(self, path: Path) -> None:
        """Nothing: the writer reads the journal."""

    def close(self, failed: bool = False) -> None:
        """Let the writer send the rest. If it takes too long it goes on alone."""
        self._tell("FAILED" if failed else "FINISHED")
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(self._patience)
        except BrokenPipeError:
            pass
        except subprocess.TimeoutExpired:
            warnings.warn("mlflow: still sending in the background; metrics.jsonl has everything", stacklevel=2)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            warnings.warn("mlflow: the writer process is gone; metrics.jsonl has everything", stacklevel=2)
