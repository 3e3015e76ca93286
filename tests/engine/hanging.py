"""A training of nothing but barriers, of which a rank hangs when a file says so."""

from __future__ import annotations

import os
import time
from pathlib import Path


def train(rank: int, port: int, folder: Path) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    from sam_ds.engine import distributed
    from sam_ds.engine.watchdog import watchdog

    distributed.init()
    watchdog.start(4.0, folder)
    while True:
        watchdog.mark("a step")
        if (folder / f"hang_{rank}").exists():
            (folder / f"hangs_{rank}").touch()
            time.sleep(3600)
        distributed.barrier()
        (folder / "training").touch()
