"""Rows of benchmarks as runs of an MLflow server, where one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

ROWS: list[dict[str, object]] = [
    {"op": "loss", "provider": "ours", "mode": "full", "ms_50": 2.5, "peak_mb": float("nan")},
    {"op": "loss", "provider": "theirs", "mode": "full", "ms_50": 9.0, "peak_mb": 7.0},
]


def test_rows_are_a_run_with_named_figures(tmp_path: Path, on_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'server.db'}")
    monkeypatch.chdir(tmp_path)
    import tracked
    from common import append_rows
    from mlflow.tracking import MlflowClient

    append_rows(tmp_path / "kernels.csv", ROWS)
    client = MlflowClient()
    experiment = client.get_experiment_by_name(tracked.EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics == {
        "loss/ours/full/ms_50": 2.5,
        "loss/theirs/full/ms_50": 9.0,
        "loss/theirs/full/peak_mb": 7.0,
    }
    assert run.data.tags["table"] == "kernels" and run.data.tags["machine"] and run.info.status == "FINISHED"
    assert [a.path for a in client.list_artifacts(run.info.run_id)] == ["kernels.csv"]


def test_a_server_that_is_away_costs_a_line(
    tmp_path: Path, on_path: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    from common import append_rows

    append_rows(tmp_path / "kernels.csv", ROWS)
    assert len((tmp_path / "kernels.csv").read_text().splitlines()) == 3
    said = capsys.readouterr().err
    assert "mlflow: " in said and "the rows are in kernels.csv" in said


def test_without_a_server_there_is_the_table(tmp_path: Path, on_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    import tracked
    from common import append_rows

    monkeypatch.setattr(tracked, "log", lambda table, rows: pytest.fail("nobody asked for it"))
    append_rows(tmp_path / "kernels.csv", ROWS)
    assert [path.name for path in tmp_path.iterdir()] == ["kernels.csv"]
