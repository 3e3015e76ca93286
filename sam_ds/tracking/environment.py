"""What a run ran on: the contents of ``environment.json``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import sam_ds
from sam_ds.config.secrets import without_passwords

_PACKAGES = ("torch", "triton", "deepspeed", "fairscale", "numpy", "numba", "pillow", "simplejpeg", "mlflow", "apex")
# Variables that change how a run goes. Whatever may hold a secret (a token, a server's address with a password) is not
# among them, so no pattern here may match one.
_VARIABLES = re.compile(
    r"(CUDA_(VISIBLE_DEVICES|LAUNCH_BLOCKING|DEVICE_MAX_CONNECTIONS)|CUBLAS_WORKSPACE_CONFIG|PYTORCH_\w*ALLOC_CONF"
    r"|NCCL_\w+|GLOO_\w+|TORCH_(NCCL|EXTENSIONS|CPP|LOGS|DISTRIBUTED)\w*|OMP_\w+|MKL_\w+|KMP_\w+|DS_ACCELERATOR"
    r"|(LOCAL_)?RANK|(LOCAL_)?WORLD_SIZE|MASTER_(ADDR|PORT)|TRITON_\w+)"
)
_SECRET = re.compile(r"TOKEN|SECRET|PASS|KEY|CREDENTIAL")


def environment() -> dict[str, Any]:
    """Versions, commit, machine and settings, as plain values for JSON. A value that cannot be found is None."""
    return {
        "sam_ds": sam_ds.__version__,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": [without_passwords(word) for word in sys.argv],
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cpu": _cpu(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "variables": {
            name: without_passwords(value)
            for name, value in sorted(os.environ.items())
            if _VARIABLES.fullmatch(name) and not _SECRET.search(name)
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says of the checkout this package lies in; None without a checkout or without git."""
    root = Path(sam_ds.__file__).parents[1]
    if not (root / ".git").exists():  # installed; another repository further up is not ours
        return None
    try:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str | None:
    try:
        match = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return platform.processor() or None
    return match[1] if match else platform.machine()
