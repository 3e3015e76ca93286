"""What a run's hosts are doing: a process a host that writes lines, which the MLflow writer sends."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from sam_ds.config.schema import Recipe, TrackingConfig
from sam_ds.tracking import hosts, mlflow_writer
from sam_ds.tracking.hosts import HostMonitor, gpus, look
from sam_ds.tracking.journal import NAME, Journal, read_lines
from sam_ds.tracking.tracker import NullTracker, open_tracker


def lines(run_dir: Path) -> list[dict[str, Any]]:
    (name,) = hosts.files(run_dir)
    return [line for line, _ in read_lines(run_dir / name)]


def smi(folder: Path, says: str, code: int = 0) -> None:
    """An nvidia-smi that says what a GPU machine's would."""
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\nexit {code}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)


def test_a_host_is_looked_at_until_the_training_ends(tmp_path: Path) -> None:
    monitor = HostMonitor(tmp_path, 0.2)
    until = time.monotonic() + 60
    while not hosts.files(tmp_path) or len(lines(tmp_path)) < 2:
        assert time.monotonic() < until and monitor._process.poll() is None
        time.sleep(0.1)
    before = len(lines(tmp_path))
    monitor.close()
    assert monitor._process.returncode == 0
    found = lines(tmp_path)
    assert len(found) > before  # the last look is written at the end
    host = os.uname().nodename
    assert found[0][f"system/{host}/system_memory_usage_percentage"] > 0
    assert found[-1]["step"] >= found[0]["step"]


def test_it_ends_when_the_training_is_killed(tmp_path: Path) -> None:
    monitor = HostMonitor(tmp_path, 1000)
    assert monitor._process.stdin is not None
    os.close(monitor._process.stdin.fileno())  # as the kernel does for the dead
    assert monitor._process.wait(60) == 0
    assert len(lines(tmp_path)) == 1


def test_a_second_start_counts_on(tmp_path: Path) -> None:
    folder = tmp_path / hosts.FOLDER
    folder.mkdir()
    line = json.dumps({"step": 0, "time": time.time() - 1000, "system/x": 1.0})
    (folder / f"{os.uname().nodename}.jsonl").write_text(line + "\n")
    HostMonitor(tmp_path, 1000).close()
    assert lines(tmp_path)[-1]["step"] == pytest.approx(1000, abs=60)


def test_gpus_in_a_few_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    smi(tmp_path, "100, 40000, 80000, 60, 400.5\n50, 20000, 80000, 71, 300.0\n0, 0, 80000, [N/A], [N/A]")
    assert gpus() == {
        "gpus": 3.0,
        "gpu_utilization_percentage": 50.0,
        "gpu_utilization_percentage_min": 0.0,
        "gpu_memory_usage_percentage_max": 50.0,
        "gpu_temperature_celsius_max": 71.0,
        "gpu_power_usage_watts": 700.5,
    }


def test_a_gpu_that_does_not_tell_its_memory_gets_no_other_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    smi(
        tmp_path,
        "0, [N/A], 10000, 60, 100\n0, 20000, 80000, 60, 100\n0, 30000, [N/A], 60, 100\n0, 8000, 80000, 60, 100",
    )
    assert gpus()["gpu_memory_usage_percentage_max"] == 25.0


@pytest.mark.parametrize(("says", "code"), [("No devices were found", 0), ("", 0), ("failed", 9)])
def test_a_driver_in_trouble_says_nothing(
    says: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    smi(tmp_path, says, code)
    assert gpus() == {}
    assert look(tmp_path)["disk_available_megabytes"] > 0


def test_every_host_reports_and_one_rank_of_it_does(tmp_path: Path) -> None:
    recipe = Recipe("tiny", tracking=TrackingConfig(mlflow=False, hosts_every=1000))
    assert isinstance(open_tracker(tmp_path, recipe, {}, is_main=False, local_rank=1), NullTracker)
    assert list(tmp_path.iterdir()) == []
    other = open_tracker(tmp_path, recipe, {}, is_main=False, local_rank=0)  # as on another host
    other.metrics(1, {"loss": 1.0})
    other.close()
    assert [path.name for path in tmp_path.iterdir()] == [hosts.FOLDER] and len(lines(tmp_path)) == 1


def test_all_hosts_are_in_the_mlflow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Journal(tmp_path).metrics(1, {"loss": 0.5})
    (tmp_path / hosts.FOLDER).mkdir()
    for host in ("a", "b"):
        Journal(tmp_path / hosts.FOLDER, name=f"{host}.jsonl").metrics(30, {f"system/{host}/cpu": 1.0})
    mlflow_writer.Sender(tmp_path, "sam_ds", "tiny", {}).send()
    Journal(tmp_path / hosts.FOLDER, name="b.jsonl").metrics(60, {"system/b/cpu": 2.0})
    again = mlflow_writer.Sender(tmp_path, "sam_ds", "tiny", {})
    again.send()
    client = again._client
    assert client.get_run(again.run_id).data.metrics == {"loss": 0.5, "system/a/cpu": 1.0, "system/b/cpu": 2.0}
    assert [m.step for m in client.get_metric_history(again.run_id, "system/b/cpu")] == [30, 60]
    assert set(json.loads((tmp_path / "mlflow.json").read_text())["offsets"]) == {
        NAME,
        "hosts/a.jsonl",
        "hosts/b.jsonl",
    }


def test_runs_of_one_parent_are_shown_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'server.db'}")
    senders = []
    for name, parent in (("one", "lr's sweep"), ("two", "lr's sweep"), ("three", "other"), ("four", "")):
        (tmp_path / name).mkdir()
        Journal(tmp_path / name).metrics(1, {"loss": 1.0})
        senders.append(mlflow_writer.Sender(tmp_path / name, "sam_ds", name, {}, parent))
        senders[-1].send()
    client = senders[0]._client
    tags = [client.get_run(sender.run_id).data.tags.get("mlflow.parentRunId") for sender in senders]
    assert tags[0] == tags[1] != tags[2] and tags[3] is None
    assert [client.get_run(tag).info.run_name for tag in tags[1:3]] == ["lr's sweep", "other"]
    assert client.get_run(tags[0]).info.status == "FINISHED"
