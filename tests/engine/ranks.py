"""Run test cases on several gloo ranks, many in one start: a start costs seconds, a case a fraction of one."""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

Case = Callable[[Path], Any]
_RESULTS, _ERRORS = "results_{}.json", "stderr_{}.txt"  # by rank
_LAST = 12_000  # characters of what a rank that failed wrote


def run(cases: dict[str, Case], world: int, folder: Path) -> dict[str, list[Any]]:
    """Run every case on every rank, in order, in one process group.

    A case takes a folder of its own and returns something that JSON can hold. The result maps each case to what the
    ranks returned, in their order; a case that raised maps to its traceback instead, and ends the run.

    Raises:
        RuntimeError: a rank did not end by itself, with the cases that it had ended and what it wrote last.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        mp.spawn(_rank, args=(world, port, cases, folder), nprocs=world)
    except mp.ProcessExitedException as error:
        raise RuntimeError(_last_words(error, folder)) from error
    ranks = [json.loads((folder / _RESULTS.format(rank)).read_text()) for rank in range(world)]
    return {name: [results.get(name, {"error": "not reached"}) for results in ranks] for name in cases}


def value(results: dict[str, list[Any]], name: str) -> list[Any]:
    """What the ranks returned for a case; fails the test with the traceback of the rank that raised."""
    for rank, result in enumerate(results[name]):
        assert "error" not in result, f"rank {rank}: {result['error']}"
    return [result["value"] for result in results[name]]


def _last_words(error: mp.ProcessExitedException, folder: Path) -> str:
    results, errors = (folder / name.format(error.error_index) for name in (_RESULTS, _ERRORS))
    ended = list(json.loads(results.read_text())) if results.exists() else []
    return f"{error}, having ended {ended}; it wrote:\n{errors.read_text()[-_LAST:]}"


def _rank(rank: int, world: int, port: int, cases: dict[str, Case], folder: Path) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    errors = (folder / _ERRORS.format(rank)).open("w")
    os.dup2(errors.fileno(), sys.stderr.fileno())  # what C++ writes before it aborts, too
    faulthandler.enable()
    from sam_ds.engine import distributed

    distributed.init(timedelta(seconds=60))
    results: dict[str, Any] = {}
    for name, case in cases.items():
        own = folder / name
        own.mkdir(exist_ok=True)
        try:
            results[name] = {"value": case(own)}
        except Exception:  # reported to the test that asks for this case
            results[name] = {"error": traceback.format_exc()}
        (folder / _RESULTS.format(rank)).write_text(json.dumps(results))
        if "error" in results[name]:
            break  # the ranks may be out of step now
    distributed.shut_down()
