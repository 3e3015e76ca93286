"""Processes that work for the training end when it ends them, and at no other's signal."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
from multiprocessing.synchronize import Event

from sam_ds.config.signals import STOP, leave_to_the_training


def _work(ready: Event) -> None:
    leave_to_the_training()
    ready.set()
    signal.pause()


def test_only_the_parent_ends_it() -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=_work, args=(ready,), daemon=True)
    worker.start()
    assert ready.wait(20)
    for number in STOP:
        subprocess.run([sys.executable, "-c", f"import os; os.kill({worker.pid}, {int(number)})"], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0
