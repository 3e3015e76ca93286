"""Two ranks of a training that only wait for each other, of which one hangs when a file says so."""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

GROUPS_WAIT = timedelta(seconds=6)


def train(rank: int, port: int, folder: Path) -> None:
    _join(rank, port, folder)
    from sam_ds.config.errors import TRY_AGAIN
    from sam_ds.engine import distributed
    from sam_ds.engine.watchdog import watchdog

    try:
        while True:
            watchdog.mark("a step")
            if (folder / f"hang_{rank}").exists():
                time.sleep(3600)
            distributed.barrier()
            (folder / "begun").touch()
    except RuntimeError as error:  # the other's watchdog ended it first
        if not distributed.says_ranks_are_lost(error):
            raise
        sys.exit(TRY_AGAIN)


def index(rank: int, port: int, folder: Path) -> None:
    """Rank 0 works, until a file says that it is done or hangs; the other waits for it."""
    _join(rank, port, folder, GROUPS_WAIT)
    from sam_ds.engine.watchdog import watchdog

    while rank == 0 and not (folder / "done").exists():
        if not (folder / "hang_0").exists():
            watchdog.progress("indexing a tar")
            (folder / "begun").touch()
        time.sleep(0.1)
    watchdog.meet()
    watchdog.stop()
    time.sleep(2)  # the store goes with rank 0, and the other may look once more


def leave(rank: int, port: int, folder: Path) -> None:
    """Both end while their watchdogs are in a call of the store."""
    from sam_ds.engine import distributed
    from sam_ds.engine.watchdog import Watchdog, watchdog

    talking = threading.Event()

    def many_calls(self: Watchdog, store: dist.Store, count: int) -> None:
        until = time.monotonic() + (2 if count else 0)
        tell(self, store, count)
        while time.monotonic() < until:
            talking.set()
            store.check(["nothing"])

    tell, Watchdog._tell = Watchdog._tell, many_calls  # type: ignore[method-assign]
    _join(rank, port, folder)
    talking.wait()
    distributed.barrier()
    (folder / "begun").touch()
    watchdog.stop()
    distributed.barrier()
    distributed.shut_down()


def _join(rank: int, port: int, folder: Path, groups_wait: timedelta = timedelta(minutes=30)) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    from sam_ds.engine import distributed
    from sam_ds.engine.watchdog import watchdog

    distributed.init(groups_wait)
    watchdog.start(4.0, folder)
