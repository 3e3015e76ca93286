"""What a training leaves behind and says holds no password and no token."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sam_ds.cli.main import main
from sam_ds.config.secrets import without_passwords
from sam_ds.data.synthetic import SyntheticConfig, synthesize

SECRET = "hunter2-8c1f"
TOKENS = (
    "HF_TOKEN",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "WANDB_API_KEY",
    "NCCL_AUTH_TOKEN",
    "TORCH_DISTRIBUTED_PASSWORD",
    "TRITON_CACHE_KEY",
)
# Of a training that another test ran in this process.
RENDEZVOUS = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
SHORT = (
    *("train.steps=2", "train.log_every=1", "data.workers=0", "curriculum.correction_rounds=0,0,0"),
    *("eval.max_pictures=1", "eval.max_masks=1", "eval.clicks=1", "eval.pictures=1"),
)


@pytest.mark.parametrize("server", [True, False])
def test_nothing_that_a_training_writes_holds_a_secret(tmp_path: Path, server: bool) -> None:
    """With a server that refuses, whose address has a password; and with the run folder's own MLflow database."""
    synthesize(tmp_path / "data", SyntheticConfig(4, 2, 0, (64, 96), (3, 5), False))
    run = tmp_path / "run"
    command = [sys.executable, "-m", "sam_ds", "train", "--recipe", "tiny", "--data", str(tmp_path / "data")]
    command += ["--output", str(run), *(word for setting in SHORT for word in ("--set", setting))]
    secrets = dict.fromkeys(TOKENS, SECRET) | {"NCCL_NET_PLUGIN": f"http://me:{SECRET}@host/x"}
    if server:
        secrets["MLFLOW_TRACKING_URI"] = f"http://me:{SECRET}@127.0.0.1:{_closed_port()}"
    else:
        secrets.pop("MLFLOW_TRACKING_TOKEN")
    own = {name: value for name, value in os.environ.items() if name not in RENDEZVOUS}
    done = subprocess.run(command, env={**own, **secrets}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert not server or "mlflow: " in done.stderr  # else the server was not asked
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"environment.json", "recipe.json", "deepspeed.json"} <= {path.name for path in files}
    assert server or run / "mlflow.db" in files
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_messages_hold_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--recipe", "tiny", "--data", f"s3://me:{SECRET}@bucket/set"]) == 2
    assert main(["check", "--recipe", "tiny", "--set", f"model.init=https://me:{SECRET}@host/w.pth"]) == 2
    said = capsys.readouterr().err
    assert "bucket/set" in said and "may hold no password" in said and SECRET not in said


def test_command_lines_hold_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from sam_ds.tracking.environment import environment

    monkeypatch.setattr(sys, "argv", ["sam-ds", "train", "--data", f"https://me:{SECRET}@host/set"])
    assert environment()["command"] == ["sam-ds", "train", "--data", "https://host/set"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:pw@host:5000/api", "http://host:5000/api"),
        ("postgresql+psycopg2://me:pw@db/x and s3://k@b", "postgresql+psycopg2://db/x and s3://b"),
        ("http://host/a@b", "http://host/a@b"),
        ("me@host", "me@host"),
        ("", ""),
    ],
)
def test_addresses(text: str, expected: str) -> None:
    assert without_passwords(text) == expected
