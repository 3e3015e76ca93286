"""The benchmarks of ``make gpu`` need nothing that a machine with torch, Triton and NumPy alone does not have."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from tests.contracts.source import ROOT

MISSING = ("deepspeed", "safetensors", "mlflow", "pydantic", "numba", "pycocotools", "simplejpeg", "fairscale", "tqdm")
RUN = """
import runpy, sys
script, missing, *arguments = sys.argv[1:]
sys.modules.update(dict.fromkeys(missing.split(",")))  # to import one of them fails
sys.path.insert(0, script.rpartition("/")[0])
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


def run(name: str, *arguments: str) -> str:
    script = (ROOT / "benchmarks" / f"bench_{name}.py").as_posix()
    command = [sys.executable, "-c", RUN, script, ",".join(MISSING), *arguments]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["rel_pos_attention", "mask_loss", "rasterize", "train_step"])
def test_starts(name: str) -> None:
    assert "--no-save" in run(name, "--help")


def test_a_training_step() -> None:
    """What is imported only when it is needed is there too."""
    said = run("train_step", "--steps", "1", "--masks", "1", "--no-save")
    assert [line.split()[0] for line in said.splitlines()[1:]] == ["plain", "reference"]


def test_what_hides_a_package_hides_it() -> None:
    command = [sys.executable, "-c", RUN.replace("runpy.run_path", "import deepspeed #"), "a/b", "deepspeed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError: import of deepspeed halted" in done.stderr


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A10", None),
    ],
)
def test_gpus_by_their_names(device: str, name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpus

    found = gpus.called(device)
    assert (found.name if found else None) == name
