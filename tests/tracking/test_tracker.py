"""Trackers of a run: the journal, MLflow in its own process, TensorBoard."""

from __future__ import annotations

import functools
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sam_ds.config.schema import Recipe, TrackingConfig
from sam_ds.tracking import mlflow_writer
from sam_ds.tracking import tracker as tracker_module
from sam_ds.tracking.environment import environment
from sam_ds.tracking.journal import NAME, Journal, read_metrics
from sam_ds.tracking.meters import Throughput, peak_memory
from sam_ds.tracking.mlflow import MlflowWriter
from sam_ds.tracking.tracker import NullTracker, flatten, open_tracker

PARAMS = {"recipe": {"optim": {"lr": 0.1}, "name": "tiny"}, "long": "x" * 900} | {f"p{i}": i for i in range(130)}


def control(text: str) -> Any:
    """A pipe that says ``text`` and ends."""
    reader, writer = os.pipe()
    os.write(writer, text.encode())
    os.close(writer)
    return os.fdopen(reader, "rb", buffering=0)


def run_of(run_dir: Path) -> tuple[Any, Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run_dir / 'mlflow.db'}")
    return client, client.get_run(json.loads((run_dir / "mlflow.json").read_text())["run_id"])


def test_a_run_and_its_resumption_are_one_mlflow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    journal = Journal(tmp_path)
    for step in range(1, 1300):
        journal.metrics(step, {"loss": 1 / step})
    journal.metrics(1299, {"eval/miou@1/oracle": 0.5})
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"a picture")
    journal.artifact(tmp_path / "pictures" / "a.png")
    journal.artifact(tmp_path / "gone.png")
    sender = mlflow_writer.Sender(tmp_path, "sam_ds", "tiny", flatten(PARAMS))
    assert mlflow_writer.follow(sender, control(""))  # the training was killed

    client, run = run_of(tmp_path)
    assert run.info.status == "FAILED" and run.data.params["recipe.optim.lr"] == "0.1"
    assert len(run.data.params["long"]) == 500 and len(run.data.params) == 133
    assert run.data.metrics["eval/miou_at_1/oracle"] == 0.5
    assert [a.path for a in client.list_artifacts(run.info.run_id, "pictures")] == ["pictures/a.png"]

    Journal(tmp_path, resumed_at=1299).metrics(1300, {"loss": 0.0})
    changed = flatten(PARAMS) | {"recipe.optim.lr": "0.2"}
    assert mlflow_writer.follow(mlflow_writer.Sender(tmp_path, "sam_ds", "tiny", changed), control("FINISHED\n"))
    client, again = run_of(tmp_path)
    assert again.info.run_id == run.info.run_id and again.info.status == "FINISHED"
    assert again.data.tags["resumed/recipe.optim.lr"] == "0.2"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == list(range(1, 1301))


def test_a_dead_server_costs_a_warning_and_is_caught_up_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracker_module, "MlflowWriter", functools.partial(MlflowWriter, patience=20.0))
    tracker = open_tracker(tmp_path, Recipe("tiny"), PARAMS)
    started = time.monotonic()
    tracker.metrics(1, {"loss": 1.0})
    assert time.monotonic() - started < 0.5  # it does not wait for anybody
    tracker.close()
    said = capfd.readouterr().err
    assert said.count("the training goes on") == 1 and "secret" not in said
    assert read_metrics(tmp_path / NAME) == [{"step": 1, "loss": 1.0}]
    assert not (tmp_path / "mlflow.db").exists()

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    sender = mlflow_writer.Sender(tmp_path, "sam_ds", "tiny", {})
    assert mlflow_writer.follow(sender, control("FINISHED\n"))
    assert run_of(tmp_path)[1].data.metrics["loss"] == 1.0


def test_outages_wait_longer_and_longer_and_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [OSError("down"), OSError("down"), None, None]
    statuses = ["", "", "", "FINISHED"]
    monkeypatch.setattr(mlflow_writer, "_status", lambda control, interval: statuses.pop(0))
    monkeypatch.setattr(mlflow_writer, "_FIRST_WAIT", 0.0)

    class Sender:
        failures = (OSError,)
        finished = ""

        def send(self) -> None:
            answer = answers.pop(0)
            if answer:
                raise answer

        def finish(self, status: str) -> None:
            self.finished = status

    sender = Sender()
    assert mlflow_writer.follow(sender, io.BytesIO())  # type: ignore[arg-type]
    assert sender.finished == "FINISHED"
    said = capsys.readouterr().err
    assert said.count("mlflow: down;") == 1 and said.count("answers again") == 1

    # The end of the training is no reason to give up at once; at last it is.
    monkeypatch.setattr(mlflow_writer, "_LAST_WAIT", 0.0)
    answers[:], statuses[:], sender.finished = [OSError("down")] * 3 + [None], ["FINISHED"], ""
    assert mlflow_writer.follow(sender, io.BytesIO(), patience=60.0)  # type: ignore[arg-type]
    assert sender.finished == "FINISHED"
    answers[:], statuses[:] = [OSError("down")], ["FINISHED"]
    assert not mlflow_writer.follow(sender, io.BytesIO(), patience=0.0)  # type: ignore[arg-type]


def test_a_writer_that_died_does_not_stop_the_training(tmp_path: Path) -> None:
    writer = MlflowWriter(tmp_path / "missing", "sam_ds", "tiny", {})  # a folder that is not there ends it
    writer._process.wait()
    with pytest.warns(UserWarning, match="the writer process is gone"):
        writer.close()


def test_without_mlflow_there_is_the_journal(tmp_path: Path) -> None:
    recipe = Recipe("tiny", tracking=TrackingConfig(mlflow=False, hosts_every=0))
    tracker = open_tracker(tmp_path, recipe, {})
    tracker.metrics(3, {"loss": 1.0})
    tracker.artifact(tmp_path / "a.png")
    tracker.close()
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_only_one_rank_reports(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path, Recipe("tiny"), {}, is_main=False, local_rank=1)
    assert isinstance(tracker, NullTracker)
    tracker.metrics(1, {"loss": 1.0})
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_has_curves_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = Recipe("tiny", tracking=TrackingConfig(mlflow=False, tensorboard=True))
    tracker = open_tracker(tmp_path, recipe, {})
    tracker.metrics(7, {"loss": 0.25})
    Image.new("RGB", (8, 4)).save(tmp_path / "a.png")
    tracker.artifact(tmp_path / "a.png")
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(7, 0.25)]
    assert events.Images("a")[0].step == 7


def test_names_and_values_as_mlflow_takes_them() -> None:
    assert mlflow_writer.mlflow_name("miou@1/oracle") == "miou_at_1/oracle"
    assert mlflow_writer.mlflow_name("a+b ü" * 100) == ("a_b _" * 100)[:250]
    assert flatten({"a": {"b": (1, 2), "c": {}}}) == {"a.b": "(1, 2)", "a.c": "{}"}


def test_environment_is_json_and_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SECRET_TOKEN", "hidden")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = environment()
    assert "hidden" not in json.dumps(found)
    assert found["variables"]["OMP_NUM_THREADS"] == "1"
    assert found["packages"]["torch"] == torch.__version__


def test_meters() -> None:
    meter = Throughput()
    meter.add(images=4, object_rounds=100)
    time.sleep(0.01)
    rates = meter.read()
    assert rates["throughput/object_rounds_per_s"] == pytest.approx(25 * rates["throughput/images_per_s"])
    assert meter.read()["throughput/images_per_s"] == 0
    assert 0.01 < peak_memory(torch.device("cpu"))["memory/host_peak_gib"] < 1000
