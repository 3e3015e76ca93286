"""The scripts that print a hostfile, with programs that stand for Slurm's and for ssh."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from sam_ds.config import hostfile

FOLDER = Path(__file__).resolve().parents[2] / "hostfiles"
SCONTROL = '[ "$*" = "show hostnames node-[1-2]" ] && printf "node-1\\nnode-2\\n"'
# The last words are the host and what to run there. Answers come in another order than questions.
SSH = """shift $(($# - 3))
case $1 in
a) sleep 0.2; printf "GPU 0: NVIDIA A100\\nGPU 1: NVIDIA A100\\n" ;;
b) echo "GPU 0: NVIDIA A100" ;;
*) echo "ssh: Could not resolve hostname $1: Name or service not known" >&2; exit 255 ;;
esac"""


def run(script: str, *words: str, folder: Path, program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What a script prints where ``program`` is the one that it needs."""
    name = "scontrol" if script == "from_slurm.sh" else "ssh"
    (folder / name).write_text(f"#!/usr/bin/env bash\n{program}\n")
    (folder / name).chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    environment |= variables | {"PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", str(FOLDER / script), *words]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=30)


def hosts(printed: str, folder: Path) -> list[tuple[str, int]]:
    path = folder / "hosts"
    path.write_text(printed)
    return [(host.name, host.slots) for host in hostfile.load(path)]


def test_of_a_slurm_job(tmp_path: Path) -> None:
    job = {"SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_GPUS_ON_NODE": "8"}
    done = run("from_slurm.sh", folder=tmp_path, program=SCONTROL, **job)
    assert done.returncode == 0, done.stderr
    assert hosts(done.stdout, tmp_path) == [("node-1", 8), ("node-2", 8)]


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({}, "SLURM_JOB_NODELIST is not set"),
        ({"SLURM_JOB_NODELIST": "node-[1-2]"}, "--gpus-per-node=8"),
        ({"SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_GPUS_ON_NODE": "0"}, "--gpus-per-node=8"),
        ({"SLURM_JOB_NODELIST": "other", "SLURM_GPUS_ON_NODE": "8"}, ""),  # scontrol fails, and says why
    ],
)
def test_of_no_slurm_job(job: dict[str, str], words: str, tmp_path: Path) -> None:
    done = run("from_slurm.sh", folder=tmp_path, program=SCONTROL, **job)
    assert done.returncode != 0
    assert done.stdout == ""
    assert words in done.stderr


def test_of_machines_that_ssh_reaches(tmp_path: Path) -> None:
    done = run("from_ssh.sh", "a", "b", folder=tmp_path, program=SSH)
    assert done.returncode == 0, done.stderr
    assert hosts(done.stdout, tmp_path) == [("a", 2), ("b", 1)]


def test_of_machines_of_which_one_is_not_there(tmp_path: Path) -> None:
    done = run("from_ssh.sh", "a", "c", folder=tmp_path, program=SSH)
    assert done.returncode != 0
    assert done.stderr.splitlines() == [
        "from_ssh.sh: c shows no GPU: ssh: Could not resolve hostname c: Name or service not known"
    ]
    assert run("from_ssh.sh", folder=tmp_path, program=SSH).returncode == 2
