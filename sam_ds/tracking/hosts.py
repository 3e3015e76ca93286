"""What a run's hosts are doing, looked at beside the training: processors, memory, disk, network, GPUs.

On every host the first rank starts one small process, ``python -m sam_ds.tracking.hosts``. It writes lines like those
of ``metrics.jsonl`` to ``hosts/NAME.jsonl`` of the run folder, where the MLflow writer finds them: no host but the
first one talks to the server, and what it misses is sent later. A line's step is the seconds since the host's first
line. The process neither waits for the training nor holds it up: it goes on while a rank hangs, and ends when the
training closes its input or is killed.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from sam_ds.config.signals import leave_to_the_training
from sam_ds.tracking import beside
from sam_ds.tracking.journal import Journal, read_lines

FOLDER = "hosts"
_PATIENCE = 5.0  # seconds that the end of a training waits for the process
_GPU_PATIENCE = 20.0  # a driver in trouble may not answer at all
_QUERY = ("utilization.gpu", "memory.used", "memory.total", "temperature.gpu", "power.draw")


class HostMonitor:
    """The process that looks after this host."""

    def __init__(self, run_dir: Path, every: float) -> None:
        """``every``: seconds between two looks."""
        self._process = beside.start("sam_ds.tracking.hosts", {"run_dir": str(run_dir.absolute()), "every": every})

    def close(self) -> None:
        """Let it write a last line and end."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def files(run_dir: Path) -> list[str]:
    """What hosts have written, named as below the run folder."""
    return sorted(f"{FOLDER}/{path.name}" for path in (run_dir / FOLDER).glob("*.jsonl"))


def look(folder: Path) -> dict[str, float]:
    """The host and the disk of ``folder`` now, named as MLflow does; processors since the last look."""
    memory, network = psutil.virtual_memory(), psutil.net_io_counters()
    found = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.percent,
    }
    if network is not None:  # there is an interface
        found["network_receive_megabytes"] = network.bytes_recv / 1e6
        found["network_transmit_megabytes"] = network.bytes_sent / 1e6
    with suppress(OSError):  # a file server that is away
        found["disk_available_megabytes"] = psutil.disk_usage(str(folder)).free / 1e6
    return found | gpus()


def gpus() -> dict[str, float]:
    """All GPUs of the host in a few numbers, as nvidia-smi gives them; {} without it.

    32 hosts of 8 GPUs each would be a thousand curves. What one looks for is how busy they are, whether one is less
    busy, hotter or fuller than the others, and what they draw together.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_GPU_PATIENCE)
    except (OSError, subprocess.SubprocessError):
        return {}
    numbers = [[_number(text) for text in line.split(",")] for line in done.stdout.splitlines()]
    rows = [row for row in numbers if len(row) == len(_QUERY)]
    if not rows:
        return {}
    busy, _, _, heat, power = ([x for x in column if x is not None] for column in zip(*rows, strict=True))
    # A GPU that does not tell both has no part in it: another's number would take its place.
    full = [100 * used / total for _, used, total, _, _ in rows if used is not None and total]
    found = {"gpus": float(len(rows))}
    found |= (
        {"gpu_utilization_percentage": statistics.mean(busy), "gpu_utilization_percentage_min": min(busy)}
        if busy
        else {}
    )
    found |= {"gpu_memory_usage_percentage_max": max(full)} if full else {}
    found |= {"gpu_temperature_celsius_max": max(heat)} if heat else {}
    return found | ({"gpu_power_usage_watts": sum(power)} if power else {})


def _number(text: str) -> float | None:
    """None for what a GPU does not tell: "[N/A]"."""
    try:
        return float(text)
    except ValueError:
        return None


def main() -> None:
    leave_to_the_training()  # it ends when its input does
    control = os.fdopen(0, "rb", buffering=0)
    job = json.loads(control.readline())
    host = re.sub(r"[^\w.-]", "_", socket.gethostname())
    folder = Path(job["run_dir"]) / FOLDER
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        sys.exit(f"{folder} cannot be made ({error.strerror}): this host is not looked after")
    path = folder / f"{host}.jsonl"
    began = next((line["time"] for line, _ in read_lines(path)), time.time()) if path.exists() else time.time()
    journal = Journal(folder, name=path.name)
    psutil.cpu_percent()  # the next one says what was since this one
    ended = False
    while not ended:
        ended = bool(select.select([control], [], [], job["every"])[0])
        found = look(folder)
        journal.metrics(round(time.time() - began), {f"system/{host}/{name}": x for name, x in found.items()})
    journal.close()


if __name__ == "__main__":
    main()
