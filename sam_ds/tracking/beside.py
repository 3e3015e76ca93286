"""Processes that work beside the training and end with it: MLflow's writer, and the one that looks after the host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import sam_ds


def start(module: str, job: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    """Start ``python -m module``, whose input begins with what it is to do, as a line of JSON.

    It ends when its input does: at the latest when this process dies.
    """
    package_root = str(Path(sam_ds.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for the training
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # whoever tells it more will notice
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
    return process
