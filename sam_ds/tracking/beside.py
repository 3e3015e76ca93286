"""Processes that work beside the training and end with it: MLflow's writer, and the one that looks after the host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import sam_ds


def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start ``python -m module``, which ends when its input does: that is, at the latest, when this process dies."""
    package_root = str(Path(sam_ds.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for the training
    )
