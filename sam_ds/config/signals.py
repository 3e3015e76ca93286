"""The signals that ask a job to stop. The training answers them; the processes that work for it leave it to answer."""

from __future__ import annotations

import signal

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def leave_to_the_training() -> None:
    """Ignore them in this process: who signals a whole job would otherwise kill what the training still needs."""
    for number in STOP:
        signal.signal(number, signal.SIG_IGN)
