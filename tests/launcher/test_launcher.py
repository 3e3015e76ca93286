"""The command of the README, under the real launcher: train, stop, go on, evaluate, predict, export."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sam_ds.data.synthetic import SyntheticConfig, synthesize

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


def run(*command: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def train(data: Path, output: Path, steps: int) -> subprocess.CompletedProcess[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ("deepspeed", "--hostfile", "hostfiles/local.hostfile", "--no_ssh_check", "--log_level", "warning")
    address = ("--master_addr", "127.0.0.1", "--master_port", port)
    what = ("--recipe", "tiny", "--deepspeed_config", "ds_configs/zero2_local.json", "--data", data, "--output", output)
    settings = [word for setting in (*SETTINGS, f"train.steps={steps}") for word in ("--set", setting)]
    return run(*launcher, *address, "--module", "sam_ds", "train", *what, *settings)


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
