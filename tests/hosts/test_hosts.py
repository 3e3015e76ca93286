"""A training on several hosts under the real launcher, one of which is lost; and what ``check --hosts`` tells of them.

``make test-hosts`` installs what this needs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from sam_ds.data.synthetic import SyntheticConfig, synthesize
from sam_ds.storage import checkpoints
from sam_ds.tracking.journal import read_metrics
from tests.hosts.machines import Machine, leftovers, machines, why_not

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.launcher, pytest.mark.skipif(bool(why_not()), reason=why_not())]

SMALL = SyntheticConfig(train=8, val=2, size=(64, 96), objects=(3, 5))
SETTINGS = (
    "data.workers=0",
    "curriculum.parts=1.0",
    "curriculum.crop_sizes=64",
    "curriculum.max_masks=2",
    "curriculum.correction_rounds=1",
    "eval.clicks=1",
    "eval.box=false",
    "eval.max_masks=1",
    "eval.pictures=0",
    "train.save_every=2",
    "train.keep_last=100",
    "train.log_every=1",
    "tracking.mlflow=false",
)
# What launcher and ranks must know, on the hosts as here.
VARIABLES = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
BATCH = 2  # pictures a step, on however many ranks
SILENCE = 15  # seconds that a host may be silent


class Training:
    """One training, started now on these hosts and now on others."""

    def __init__(self, folder: Path, stage: int) -> None:
        self.folder, self.stage = folder, stage
        self.data, self.output = folder / "data", folder / "runs" / "run"
        self.output.parent.mkdir()
        synthesize(self.data, SMALL)
        (folder / "environment").write_text("".join(f"{key}={value}\n" for key, value in VARIABLES.items()))

    def config(self, world: int) -> Path:
        """The DeepSpeed config that keeps the batch."""
        zero = {"stage": self.stage} | ({"stage3_param_persistence_threshold": 0} if self.stage == 3 else {})
        values = {
            "train_batch_size": BATCH,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": BATCH // world,
            "gradient_clipping": 1.0,
            "zero_optimization": zero,
        }
        path = self.folder / f"config_{world}.json"
        path.write_text(json.dumps(values))
        return path

    def hostfile(self, *hosts: str) -> Path:
        path = self.folder / "hosts"
        path.write_text("".join(f"{host} slots=1\n" for host in hosts))
        return path

    def command(self, world: int, steps: int, output: Path) -> list[str]:
        settings = [word for setting in (*SETTINGS, f"train.steps={steps}") for word in ("--set", setting)]
        where = ("--deepspeed_config", self.config(world), "--data", self.data, "--output", output)
        return [str(word) for word in ("train", "--recipe", "tiny", *where, "--timeout", SILENCE, *settings)]

    def launch(self, machine: Machine, hosts: tuple[str, ...], steps: int) -> subprocess.Popen[str]:
        """Start the real launcher on a machine that may be none of the hosts."""
        activate = Path(sys.prefix) / "bin" / "activate"
        environment = ("--venv_script", activate) if activate.exists() else ()
        launcher = ("deepspeed", "--hostfile", self.hostfile(*hosts), "--force_multi", "--log_level", "warning")
        variables = {**VARIABLES, "DS_ENV_FILE": str(self.folder / "environment")}
        words = (*launcher, *environment, "--module", "sam_ds", *self.command(len(hosts), steps, self.output))
        return machine.start(*words, cwd=ROOT, **variables)

    def saved(self, output: Path | None = None) -> list[int]:
        """The steps of whole checkpoints."""
        return [checkpoints.step_of(path) for path in checkpoints.find((output or self.output) / "checkpoints")]

    def losses(self, output: Path) -> dict[int, float]:
        rows = read_metrics(output / "metrics.jsonl")
        return {int(row["step"]): row["loss/total"] for row in rows if "loss/total" in row}


@pytest.mark.parametrize(
    ("stage", "lost", "unplugged", "words"),
    [
        # A host without power says nothing any more; of one whose processes die, the others are told.
        (2, "b", True, ["rank 1 (b, process", "its machine or network is gone"]),
        (3, "b", False, ["rank 0: other ranks have gone", "b: ssh exited"]),
        (3, "a", True, ["rank 0 (", "has not been heard of for"]),
    ],
)
def test_a_host_is_lost_and_the_one_that_is_left_goes_on(
    stage: int, lost: str, unplugged: bool, words: list[str], tmp_path: Path
) -> None:
    training = Training(tmp_path, stage)
    with machines(("login", "a", "b"), tmp_path / "machines") as hosts:
        launcher = training.launch(hosts["login"], ("a", "b"), 500)
        wait_for(lambda: len(training.saved()) >= 2, launcher)
        if unplugged:
            hosts[lost].unplug()
        hosts[lost].kill()
        said, _ = launcher.communicate(timeout=120)
        assert launcher.returncode != 0
        for word in words:
            assert word in said
        assert "Traceback" not in said

        newest = training.saved()[-1]
        left = "a" if lost == "b" else "b"
        alone = training.launch(hosts["login"], (left,), newest + 4)
        said, _ = alone.communicate(timeout=300)
        assert alone.returncode == 0, said
        assert f"going on from {checkpoints.step_folder(training.output / 'checkpoints', newest)}" in said
        assert training.saved()[-1] == newest + 4
    compare(training, newest + 4)


def compare(training: Training, steps: int) -> None:
    """The losses are those of a training that one process ran from its start: every step had the same pictures."""
    reference = training.folder / "reference"
    command = [sys.executable, "-m", "sam_ds", *training.command(1, steps, reference)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    expected, found = training.losses(reference), training.losses(training.output)
    assert list(expected) == list(range(1, steps + 1))
    assert {step: found[step] for step in expected} == pytest.approx(expected, rel=1e-3)
    # Other pictures would have been seen: from one step to the next the loss changes by more.
    assert median(abs(expected[step] / expected[step + 1] - 1) for step in range(1, steps)) > 1e-2


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.2)


def test_what_a_killed_run_has_left_is_taken_away(tmp_path: Path) -> None:
    code = "import sys, time, pathlib\nfrom tests.hosts.machines import machines\n"
    code += "with machines(('a', 'b'), pathlib.Path(sys.argv[1])): print('made', flush=True); time.sleep(100)"
    killed = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert killed.stdout is not None and killed.stdout.readline() == b"made\n"
    killed.kill()
    killed.communicate()
    assert list(leftovers())
    with machines(("a", "c"), tmp_path) as hosts:
        assert hosts["a"].run("ssh", "c", "hostname", cwd=ROOT).stdout == "c\n"
    assert not list(leftovers())


def test_check_hosts(tmp_path: Path) -> None:
    training = Training(tmp_path, stage=2)
    config = tmp_path / "any_world.json"
    config.write_text(json.dumps({"train_micro_batch_size_per_gpu": 1}))
    what = ("--recipe", "tiny", "--deepspeed_config", config, "--data", training.data, "--output", training.output)

    with machines(("a", "b"), tmp_path / "machines") as hosts:

        def check(*names: str, **variables: str) -> tuple[int, list[str]]:
            where = ("--hostfile", training.hostfile(*names), "--hosts")
            done = hosts["a"].run(sys.executable, "-m", "sam_ds", "check", *what, *where, cwd=ROOT, **variables)
            return done.returncode, done.stdout.splitlines()

        code, lines = check("a", "b", **VARIABLES)
        assert code == 0, lines
        assert "2 hosts, 2 ranks; they meet at 10.213.7.1:29500, by eth0: all is well" in lines

        for name, gpus in (("a", 1), ("b", 0)):
            program = hosts[name].folder / "nvidia-smi"
            program.write_text(f"#!/bin/sh\nfor gpu in $(seq {gpus}); do echo 535.104.05; done\n")
            program.chmod(0o755)
        code, lines = check("a", "b", DS_ACCELERATOR="cuda")
        assert code == 2
        assert [line for line in lines if "b: " in line and "nvidia-smi shows 0 GPUs there" in line]

        hosts["b"].run("mount", "-t", "tmpfs", "none", training.data, cwd=ROOT)
        code, (line,) = check("a", "b", **VARIABLES)
        assert code == 2
        assert f"b: {training.data} holds no picture; give" in line

        hosts["b"].run("umount", training.data, cwd=ROOT)
        hosts["b"].run("mount", "-t", "tmpfs", "none", training.output.parent, cwd=ROOT)
        code, (line,) = check("a", "b", **VARIABLES)
        assert code == 2
        assert f"b: it does not see what a writes to {training.output.parent}" in line

        hosts["b"].unplug()
        began = time.monotonic()
        code, (silent, unknown) = check("a", "b", "nowhere", **VARIABLES)
        assert code == 2
        assert "b: it does not answer" in silent or "b: there is no way to it" in silent
        assert "nowhere: its name is unknown here" in unknown
        assert time.monotonic() - began < 60
