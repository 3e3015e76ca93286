"""The signals that ask a job to stop. The training answers them; the processes that work for it leave it to answer."""

from __future__ import annotations

import os
import signal
import threading

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def hold() -> None:
    """Keep them waiting, until ``release``: before a process is ready to answer, each would kill it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)


def release() -> None:
    """Let those that wait, and those to come, reach whoever listens now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)


def leave_to_the_training() -> None:
    """Ignore them in this process: who signals a whole job would otherwise kill what the training still needs.

    Only a SIGTERM from the parent process, which is the training, ends it: so Python ends the worker processes that
    are left when it exits, and it would wait for ever for one that ignores that.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    threading.Thread(target=_wait_for_the_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_the_parent(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
