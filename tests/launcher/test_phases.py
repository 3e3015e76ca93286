"""A training in two phases under the real launcher, killed in each: it comes to the weights of one that was not."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from sam_ds.data.synthetic import synthesize
from sam_ds.engine.precision import local_config
from tests.launcher.test_launcher import SETTINGS, SMALL, end, rank_processes, start, wait_for

MAE = (
    "data.workers=0",
    "tracking.mlflow=false",
    "train.save_every=1",
    "train.keep_last=100",
    "eval.pictures=1",
    "eval.max_pictures=2",
)
TINY = (*SETTINGS, "tracking.mlflow=false", "optim.frozen_encoder_steps=2", "train.save_every=1", "train.keep_last=100")
STEPS = 12  # enough that a kill comes before the last


def start_training(data: Path, output: Path) -> subprocess.Popen[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ("deepspeed", "--hostfile", "hostfiles/local.hostfile", "--no_ssh_check", "--log_level", "warning")
    address = ("--master_addr", "127.0.0.1", "--master_port", port)
    what = ("--recipe", "tiny_from_mae", "--deepspeed_config", local_config(), "--data", data)
    settings = [word for setting in (*TINY, f"train.steps={STEPS}") for word in ("--set", setting)]
    settings += [word for setting in (*MAE, f"train.steps={STEPS}") for word in ("--pretrain_set", setting)]
    return start(*launcher, *address, "--module", "sam_ds", "train", *what, "--output", output, *settings)


def last_weights(output: Path) -> str:
    return hashlib.sha256((output / f"checkpoints/step_{STEPS:08d}/weights.safetensors").read_bytes()).hexdigest()


@pytest.mark.launcher
def test_killed_in_each_phase(tmp_path: Path) -> None:
    data, straight, killed = (tmp_path / name for name in ("data", "straight", "killed"))
    synthesize(data, SMALL)
    done = end(start_training(data, straight))
    assert done.returncode == 0, done.stderr
    for folder, number in ((killed / "pretrain", signal.SIGKILL), (killed, signal.SIGTERM)):
        training = start_training(data, killed)
        wait_for(lambda folder=folder: len(list(folder.glob("checkpoints/step_????????"))) >= 2)
        os.kill(rank_processes(killed)[1], number)
        assert "Traceback" not in end(training).stderr or number == signal.SIGKILL
        assert not (folder / f"checkpoints/step_{STEPS:08d}").exists()  # else this test says nothing
    done = end(start_training(data, killed))
    assert done.returncode == 0, done.stderr
    for folder in ("pretrain", ""):
        assert last_weights(killed / folder) == last_weights(straight / folder)
