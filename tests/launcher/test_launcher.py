"""The command of the README, under the real launcher: train, stop, go on, evaluate, predict, export."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sam_ds.data.synthetic import SyntheticConfig, synthesize
from sam_ds.engine.precision import local_config

ROOT = Path(__file__).resolve().parents[2]
SMALL = SyntheticConfig(train=8, val=2, size=(64, 96), objects=(3, 5))
SETTINGS = (
    "data.workers=0",
    "curriculum.parts=0.5,0.5",
    "curriculum.crop_sizes=64,128",
    "curriculum.max_masks=4,4",
    "curriculum.correction_rounds=1,2",
    "eval.clicks=1,2",
    "eval.max_masks=2",
    "eval.pictures=1",
)


def start(*command: object) -> subprocess.Popen[str]:
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    words = [str(word) for word in command]
    return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    stdout, stderr = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return end(start(*command))


def train(data: Path, output: Path, steps: int, *more: str) -> subprocess.CompletedProcess[str]:
    return end(start_training(data, output, steps, *more))


def start_training(data: Path, output: Path, steps: int, *more: str) -> subprocess.Popen[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ("deepspeed", "--hostfile", "hostfiles/local.hostfile", "--no_ssh_check", "--log_level", "warning")
    address = ("--master_addr", "127.0.0.1", "--master_port", port)
    what = ("--recipe", "tiny", "--deepspeed_config", local_config(), "--data", data, "--output", output)
    settings = [word for setting in (*SETTINGS, f"train.steps={steps}", *more) for word in ("--set", setting)]
    return start(*launcher, *address, "--module", "sam_ds", "train", *what, *settings)


@pytest.mark.launcher
def test_the_whole_way(tmp_path: Path) -> None:
    data, output = tmp_path / "data", tmp_path / "run"
    synthesize(data, SMALL)
    first = train(data, output, 2)
    assert first.returncode == 0, first.stderr
    assert "untrained" in first.stdout and "mIoU after 1 click" in first.stdout
    for name in ("recipe.json", "deepspeed.json", "metrics.jsonl", "mlflow.db", "pictures/curves.png"):
        assert (output / name).is_file(), name
    assert json.loads((output / "deepspeed.json").read_text())["world_size"] == 2

    longer = train(data, output, 4)
    assert longer.returncode == 0, longer.stderr
    assert "evaluating after 0 steps" not in longer.stdout  # it went on
    assert (output / "checkpoints" / "step_00000004").is_dir()

    other = tmp_path / "other"
    synthesize(other, dataclasses.replace(SMALL, train=9))
    refused = train(other, output, 6)
    assert refused.returncode != 0
    assert "comes from a training on other pictures" in refused.stderr and "Traceback" not in refused.stderr

    sam_ds = (sys.executable, "-m", "sam_ds")
    picture = next((data / "val").glob("*.jpg"))
    for command in (
        ("eval", output, "--data", data / "val"),
        ("predict", picture, "--checkpoint", output, "--point", "20,20", "-o", tmp_path / "mask.png"),
        ("export", output, "-o", tmp_path / "model.safetensors"),
    ):
        done = run(*sam_ds, *command)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "mask.png").is_file() and (tmp_path / "model.safetensors").is_file()


@pytest.mark.launcher
def test_a_mistake_is_one_line_from_one_rank(tmp_path: Path) -> None:
    done = train(tmp_path / "nowhere", tmp_path / "run", 2)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "nowhere" in line and "[" not in line]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.launcher
def test_a_signal_to_one_rank_stops_all_and_a_damaged_checkpoint_is_gone_back_from(tmp_path: Path) -> None:
    data, output = tmp_path / "data", tmp_path / "run"
    synthesize(data, SMALL)
    training = start_training(data, output, 500, "train.save_every=1", "train.keep_last=100")
    wait_for(lambda: len(list(output.glob("checkpoints/step_*"))) >= 2)
    os.kill(rank_processes(output)[1], signal.SIGTERM)
    stopped = end(training)
    assert stopped.returncode == 0, stopped.stderr
    assert "Traceback" not in stopped.stderr
    newest, before = sorted(output.glob("checkpoints/step_????????"))[:-3:-1]
    assert f"preempted at step {int(newest.name[5:])}" in stopped.stdout

    moments = newest / "moments_00001.safetensors"
    content = bytearray(moments.read_bytes())
    content[-5] ^= 1
    moments.write_bytes(content)
    longer = train(data, output, int(newest.name[5:]) + 1)
    assert longer.returncode == 0, longer.stderr
    assert f"damaged, set aside: {moments} is not what was written" in longer.stdout
    assert f"going on from {before}" in longer.stdout
    assert newest.with_name(f"{newest.name}.damaged").is_dir()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.2)


def rank_processes(output: Path) -> list[int]:
    """The processes that train into a run folder, in the order of their ranks."""
    found: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = dict(pair.split("=", 1) for pair in (path / "environ").read_text().split("\0") if "=" in pair)
            words = (path / "cmdline").read_text().split("\0")
        except (OSError, ValueError):
            continue
        if "LOCAL_RANK" in environment and str(output) in words:
            found[int(environment["RANK"])] = int(path.name)
    return [found[rank] for rank in sorted(found)]
