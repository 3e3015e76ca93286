"""What all tests share: the folder of real pictures, and one thread a process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Before torch is imported: many small processes on few cores wait for each other's threads otherwise.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch  # noqa: E402

# Before anything imports triton, as DeepSpeed does: its functions are then made for the interpreter or the compiler.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real pictures in SA-1B's format (``photos/``, ``nuclei/``), from SAM_DS_DATA."""
    path = Path(os.environ.get("SAM_DS_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not path.is_dir():
        pytest.skip(f"no real pictures at {path}: set SAM_DS_DATA")
    return path


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT
