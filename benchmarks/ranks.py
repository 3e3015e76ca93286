"""Start a training loop's ranks as fresh processes, and measure time and memory inside of them. Linux only.

Light on purpose: what is imported here counts as memory of whoever is measured.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_TICKS = os.sysconf("SC_CLK_TCK")  # of /proc's CPU times, a second
_POLL = 0.1  # seconds between two looks at the ranks


def run(script: str, settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Run ``benchmarks/<script>`` on ``settings["world"]`` ranks of one thread each; what each wrote, by rank.

    The script is given the file of the settings and the file to write its results to. Ranks compute on CPUs unless
    ``settings["accelerator"]`` says "cuda".

    Raises:
        RuntimeError: a rank failed; the message ends with what it printed last.
    """
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(settings))
    port, world = _free_port(), settings["world"]
    accelerator = settings.get("accelerator", "cpu")
    ranks = [_start(script, folder, rank, world, port, accelerator) for rank in range(world)]
    try:
        while any(rank.poll() is None for rank in ranks) and not any(rank.returncode for rank in ranks):
            time.sleep(_POLL)
        failed = next((number for number, rank in enumerate(ranks) if rank.returncode), None)
    finally:  # when one fails, the others would wait for it
        for rank in ranks:
            rank.kill()
            rank.wait()
    if failed is not None:
        log = (folder / f"log_{failed}.txt").read_text(errors="replace")
        raise RuntimeError(f"rank {failed} of {script} ended with {ranks[failed].returncode}:\n{log[-3000:]}")
    return [json.loads((folder / f"result_{rank}.json").read_text()) for rank in range(world)]


def _start(script: str, folder: Path, rank: int, world: int, port: int, accelerator: str) -> subprocess.Popen[bytes]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": accelerator,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        **{name: str(value) for name, value in place.items()},
    }
    if accelerator == "cuda":  # what the parent may only ask for shapes, ranks run
        environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(ROOT / "benchmarks" / script)]
    command += [str(folder / "settings.json"), str(folder / f"result_{rank}.json")]
    with (folder / f"log_{rank}.txt").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Meter:
    """Wall and CPU seconds of every step of this rank, the first ``warmup`` of them left out."""

    def __init__(self, warmup: int) -> None:
        self._warmup = warmup
        self._steps: list[dict[str, float]] = []
        self._last = (time.perf_counter(), cpu_seconds())

    def lap(self, objects: int, loss: float) -> None:
        """A step has ended: it processed so many objects, padding none, and had this loss."""
        now = (time.perf_counter(), cpu_seconds())
        wall, cpu = (after - before for after, before in zip(now, self._last, strict=True))
        self._steps.append({"wall": wall, "cpu": cpu, "objects": objects, "loss": loss})
        self._last = now

    def write(self, path: str, **more: object) -> None:
        """The result of this rank: lists by step of wall, cpu, objects and loss, the peak memory, and ``more``."""
        timed = {name: [step[name] for step in self._steps[self._warmup :]] for name in self._steps[0]}
        timed["loss"] = [step["loss"] for step in self._steps]
        Path(path).write_text(json.dumps({**timed, "peak_mb": peak_mb(), **more}))


def cpu_seconds() -> float:
    """Of this process with all its threads, and of its loader processes that run now."""
    return time.process_time() + sum(_child_cpu_seconds(child.pid) for child in multiprocessing.active_children())


def peak_mb() -> float:
    """Most resident memory so far, of this process and its loader processes, MB.

    From /proc and not from getrusage, whose maximum a new process inherits from the one that started it.
    """
    children = [child.pid for child in multiprocessing.active_children()]
    return sum(_peak_mb(pid) for pid in (os.getpid(), *children))


def _peak_mb(pid: int | None) -> float:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def _child_cpu_seconds(pid: int | None) -> float:
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = after_name[11:13]  # fields 14 and 15 of proc(5), counted from the third
    return (int(user) + int(system)) / _TICKS
