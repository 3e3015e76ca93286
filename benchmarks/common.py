"""What every benchmark shares: where it ran, and one way to add to a table of results."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

# Packages whose version can move a figure.
_PACKAGES = (
    "torch",
    "deepspeed",
    "triton",
    "numba",
    "numpy",
    "pillow",
    "simplejpeg",
    "pycocotools",
    "segment-anything",
    "transformers",
)


def append_rows(csv_path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Add measurements to a CSV table, each with machine, versions, commit and date.

    Columns that the table does not have yet are added to it, empty in older rows. Where MLFLOW_TRACKING_URI names a
    server, the rows are a run there too.

    Args:
        csv_path: the table, made if it is not there.
        rows: column name to value.
    """
    where = environment()
    stamped = [{**row, **where} for row in rows]
    older: list[dict[str, str]] = []
    if csv_path.exists():
        with csv_path.open(newline="") as file:
            older = list(csv.DictReader(file))
    columns = list(dict.fromkeys(name for row in [*older, *stamped] for name in row))
    csv_path.parent.mkdir(parents=True, exist_ok=True)
    with csv_path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*older, *stamped])
    if os.environ.get("MLFLOW_TRACKING_URI"):
        from tracked import log  # MLflow takes seconds to import, and machines that only time kernels lack it

        log(csv_path.stem, stamped)


def environment() -> dict[str, str]:
    """Where a measurement was made."""
    return {"machine": _machine(), "versions": _versions(), "commit": _commit(), "date": _now()}


def _machine() -> str:
    """The processor, and the accelerator if torch sees one."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = f"{len(names)}x {names[0]}" if names else cpu
    return f"{torch.cuda.get_device_name()} / {cpu}" if torch.cuda.is_available() else cpu


def _versions() -> str:
    installed = {package.metadata["Name"].lower(): package.version for package in metadata.distributions()}
    found = [f"{name} {installed[name]}" for name in _PACKAGES if name in installed]
    return "; ".join([f"python {platform.python_version()}", *found])


def _commit() -> str:
    """The commit, with a + if files differ from it."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", "sam_ds", "kernels", "benchmarks/*.py"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
