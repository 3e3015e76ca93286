"""The process that sends a run's ``metrics.jsonl`` to MLflow: ``python -m sam_ds.tracking.mlflow_writer``.

Its standard input has one line of JSON that says what to do, then a line with the run's last status, then the end of
the file; the end alone means that the training was killed. ``mlflow.json`` in the run folder keeps the MLflow run's id
and how many bytes it has of the journal and of what each host wrote, so that a resumed training goes on in the same
run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sam_ds.config.secrets import without_passwords
from sam_ds.config.signals import leave_to_the_training
from sam_ds.tracking import hosts
from sam_ds.tracking.journal import NAME, read_lines

_INTERVAL = 2.0  # seconds between two looks at the journal
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 300.0  # seconds before another try at a server that does not answer
_LAST_WAIT = 1.0  # the same when the training has ended
_PARENT, _IS_PARENT = "mlflow.parentRunId", "sam_ds.parent"  # tags: MLflow's own, and ours of the parent's name
_MAX_METRICS, _MAX_PARAMS, _MAX_VALUE = 1000, 100, 500  # MLflow's limits on a request, and on a value's length


class Sender:
    """One MLflow run and how much of the run folder's journals it has.

    Raises from ``send``: what ``failures`` names, when the server cannot be reached or refuses.
    """

    def __init__(self, run_dir: Path, experiment: str, name: str, params: dict[str, str], parent: str = "") -> None:
        """``parent``: the name of the run that this one belongs to, made if the experiment has none; "" for none."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        self.failures = (MlflowException, SQLAlchemyError, OSError)
        self.run_dir, self.experiment, self.name, self.params = run_dir, experiment, name, params
        self.parent = parent
        own = f"sqlite:///{run_dir / 'mlflow.db'}"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or own
        self.artifacts = (run_dir / "mlflow_artifacts").as_uri() if self.uri == own else None
        self.run_id = ""
        self.offsets: dict[str, int] = {}  # by the journal's name below the run folder
        self._client: Any = None

    def send(self) -> None:
        """Send every line that is new."""
        if not self.run_id:
            self._open_run()
        for journal in (NAME, *hosts.files(self.run_dir)):
            for metrics, artifact, offset in self._batches(journal):
                for start in range(0, len(metrics), _MAX_METRICS):
                    self._client.log_batch(self.run_id, metrics=metrics[start : start + _MAX_METRICS])
                if artifact:
                    self._send_artifact(artifact)
                self.offsets[journal] = offset
                self._save()

    def finish(self, status: str) -> None:
        self._client.set_terminated(self.run_id, status)

    def _open_run(self) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self.uri)
        run_id = self._load()
        if run_id:
            self._client.update_run(run_id, status="RUNNING")
        else:
            experiment = self._experiment_id()
            tags = {_PARENT: self._parent_id(experiment)} if self.parent else {}
            run_id = self._client.create_run(experiment, run_name=self.name, tags=tags).info.run_id
        self.run_id = run_id
        self._save()
        self._send_params()

    def _experiment_id(self) -> str:
        known = self._client.get_experiment_by_name(self.experiment)
        if known:
            return str(known.experiment_id)
        return str(self._client.create_experiment(self.experiment, artifact_location=self.artifacts))

    def _parent_id(self, experiment: str) -> str:
        """The run named ``parent`` that all of a sweep's or a job's runs are shown below.

        Two trainings that start at once may both make one: both then take the first.
        """
        name = self.parent.replace("'", "_")  # quotes would end the text in the search
        query = f"tags.`{_IS_PARENT}` = '{name}'"
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        if not self._client.search_runs([experiment], query, max_results=1):
            made = self._client.create_run(experiment, run_name=self.parent, tags={_IS_PARENT: name}).info.run_id
            self._client.set_terminated(made)
        return str(self._client.search_runs([experiment], query, order_by=order, max_results=1)[0].info.run_id)

    def _send_params(self) -> None:
        """Parameters of an MLflow run cannot change: what a resumed training changed becomes a tag."""
        from mlflow.entities import Param, RunTag

        params = {mlflow_name(name): value[:_MAX_VALUE] for name, value in self.params.items()}
        logged = self._client.get_run(self.run_id).data.params
        new = [Param(name, value) for name, value in params.items() if name not in logged]
        changed = [RunTag(f"resumed/{n}", v) for n, v in params.items() if n in logged and logged[n] != v]
        for start in range(0, len(new), _MAX_PARAMS):
            self._client.log_batch(self.run_id, params=new[start : start + _MAX_PARAMS])
        for start in range(0, len(changed), _MAX_PARAMS):
            self._client.log_batch(self.run_id, tags=changed[start : start + _MAX_PARAMS])

    def _batches(self, name: str) -> Iterator[tuple[list[Any], str, int]]:
        """What to send next: metrics, an artifact (or ""), and the journal's offset behind them."""
        from mlflow.entities import Metric

        journal = self.run_dir / name
        metrics: list[Any] = []
        done = offset = self.offsets.get(name, 0)
        for line, offset in read_lines(journal, done) if journal.exists() else ():
            if "artifact" in line:
                yield metrics, line["artifact"], offset
                metrics = []
                continue
            step, milliseconds = line.pop("step"), round(line.pop("time") * 1000)
            metrics += [Metric(mlflow_name(name), float(value), milliseconds, step) for name, value in line.items()]
            if len(metrics) >= _MAX_METRICS:
                yield metrics, "", offset
                metrics = []
        if metrics:
            yield metrics, "", offset

    def _send_artifact(self, artifact: str) -> None:
        path = self.run_dir / artifact
        if not path.exists():  # replaced or cleaned away since
            return
        folder = None if os.path.isabs(artifact) else str(Path(artifact).parent)
        self._client.log_artifact(self.run_id, str(path), None if folder == "." else folder)

    def _server(self) -> str:
        """Names the server in ``mlflow.json`` without the password that its address may hold."""
        return hashlib.sha256(self.uri.encode()).hexdigest()[:12]

    def _load(self) -> str:
        path = self.run_dir / "mlflow.json"
        state = json.loads(path.read_text()) if path.exists() else {}
        if state.get("server") != self._server():  # another server gets the run from its beginning
            return ""
        self.offsets = state["offsets"]
        return str(state["run_id"])

    def _save(self) -> None:
        temporary = self.run_dir / "mlflow.json.tmp"
        temporary.write_text(json.dumps({"server": self._server(), "run_id": self.run_id, "offsets": self.offsets}))
        temporary.replace(self.run_dir / "mlflow.json")


def mlflow_name(name: str) -> str:
    """A name that MLflow takes: letters, digits and _ - . : / space, at most 250."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"), flags=re.ASCII)[:250]


def follow(sender: Sender, control: IO[bytes], interval: float = _INTERVAL, patience: float = 0.0) -> bool:
    """Send until ``control`` ends, then the rest, for which a server that is away gets ``patience`` seconds.

    Returns whether everything was sent.
    """
    status, wait, next_try, until = "", _FIRST_WAIT, 0.0, math.inf
    while True:
        if status:
            time.sleep(min(interval, _LAST_WAIT))
        else:
            status = _status(control, interval)
            if status:
                until = time.monotonic() + patience
        if time.monotonic() < next_try and not status:
            continue
        try:
            sender.send()
            if status:
                sender.finish(status)
            if next_try:
                print("mlflow: the server answers again", file=sys.stderr)
            wait, next_try = _FIRST_WAIT, 0.0
            if status:
                return True
        except sender.failures as error:
            if not next_try:
                _complain(error)
            wait, next_try = min(2 * wait, _LONGEST_WAIT), time.monotonic() + wait
            if time.monotonic() > until:
                return False


def _status(control: IO[bytes], interval: float) -> str:
    """The run's last status if there is one within the interval, else an empty text."""
    if not select.select([control], [], [], interval)[0]:
        return ""
    return control.readline().decode().strip() or "FAILED"


def _complain(error: BaseException) -> None:
    reason = without_passwords(str(error)).strip().partition("\n")[0][:200]
    print(
        f"mlflow: {reason}; the training goes on, metrics.jsonl has everything and is sent when the server answers",
        file=sys.stderr,
    )


def main() -> int:
    os.nice(10)  # the training goes first
    leave_to_the_training()  # it ends when its input does
    # Tries are repeated here, at a growing distance; a request that hangs for minutes only delays the end.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    control = os.fdopen(0, "rb", buffering=0)
    job = json.loads(control.readline())
    run_dir = Path(job["run_dir"])
    with (run_dir / ".mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the writer of a training that was killed may still be at work
        sender = Sender(run_dir, job["experiment"], job["name"], job["params"], job["parent"])
        return 0 if follow(sender, control, patience=job["patience"]) else 1


if __name__ == "__main__":
    sys.exit(main())
