"""Measurements as runs of an MLflow server: what ``append_rows`` adds to a table, where MLFLOW_TRACKING_URI is set."""

from __future__ import annotations

import csv
import io
import math
import os
import sys
import time
from collections.abc import Sequence

from tables import STAMPS, key, number, results_of

EXPERIMENT = "sam_ds benchmarks"
_MOST = 1000  # metrics a request


def log(table: str, rows: Sequence[dict[str, object]]) -> None:
    """One run: every figure a metric named CASE/COLUMN, the rows as a table, the stamps as tags.

    A server that does not answer costs a line on the terminal: the rows are in the CSV file.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    texts = [{name: str(value) for name, value in row.items()} for row in rows]
    try:
        _send(table, texts)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        print(f"mlflow: {str(error).partition(chr(10))[0][:200]}; the rows are in {table}.csv", file=sys.stderr)


def _send(table: str, rows: list[dict[str, str]]) -> None:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

    from sam_ds.tracking.mlflow_writer import mlflow_name

    client = MlflowClient()
    known = client.get_experiment_by_name(EXPERIMENT)
    experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT)
    stamps = {name: rows[-1][name] for name in STAMPS}
    tags = {"table": table, **stamps, "mlflow.source.git.commit": stamps["commit"].rstrip("+")}
    run = client.create_run(experiment, run_name=f"{table} {stamps['commit']}", tags=tags).info.run_id
    now = round(time.time() * 1000)
    metrics = [
        Metric(mlflow_name("/".join([*(value for _, value in key(table, row)), name])), number(row, name), now, 0)
        for row in rows
        for name in row
        if results_of(table).of(name) and math.isfinite(number(row, name))
    ]
    for start in range(0, len(metrics), _MOST):
        client.log_batch(run, metrics[start : start + _MOST])
    client.log_text(run, _as_csv(rows), f"{table}.csv")
    client.set_terminated(run)


def _as_csv(rows: list[dict[str, str]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
