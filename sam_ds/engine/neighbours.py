"""The processes of other ranks on this machine: a stopped one is woken, so that the end of the job reaches it.

DeepSpeed's launcher ends its ranks by SIGTERM, which a stopped process does not take, and waits for it for 30 seconds.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil

from sam_ds.engine import distributed


class Neighbours:
    """Other ranks of this job on this machine, by what each has said of its own process while all were there."""

    def __init__(self) -> None:
        """Collective."""
        own = psutil.Process()
        words = distributed.gather((_machine(), own.pid, own.create_time()))
        self._processes: list[psutil.Process] = []
        for machine, pid, born in words:
            if machine and machine == _machine() and pid != own.pid:
                with suppress(psutil.Error):
                    process = psutil.Process(pid)
                    if abs(process.create_time() - born) < 1.0:  # told from one clock, which may be set meanwhile
                        self._processes.append(process)

    def wake(self) -> None:
        """Let those go on that are stopped. psutil sees to it that it is still they who have these process ids."""
        for process in self._processes:
            with suppress(psutil.Error):
                if process.status() == psutil.STATUS_STOPPED:
                    process.resume()


def _machine() -> str:
    """Equal where process ids mean the same: one start of one kernel, one namespace of ids. "" where nothing tells."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{start} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""
