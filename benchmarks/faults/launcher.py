"""The real DeepSpeed launcher: what it does when a rank dies, and when it is itself asked to stop."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.lab import Lab, Row, counted, spread
from faults.lives import Training, newest

ROOT = Path(__file__).resolve().parents[2]
_SETTINGS = ("train.steps=2000", "train.save_every=5", "train.log_every=1", "model.preset=tiny", "eval.max_pictures=1")


def launched(lab: Lab) -> Iterator[Row]:
    def kill(training: Training) -> None:
        os.kill(ranks(training)[1], signal.SIGKILL)

    def stop(training: Training) -> None:
        os.kill(ranks(training)[1], signal.SIGSTOP)

    yield from _ended(lab, "kill -9 of a rank, under the launcher", kill, lab.few)
    yield from _ended(lab, "SIGSTOP of a rank, under the launcher (--timeout 5)", stop, min(lab.few, 3))
    committed, lost, seconds = [], [], []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM)[: lab.few]:
        training = lab.training()
        process = start(training)
        wait_for(lambda training=training: newest(training) >= 5, process)
        began = time.time()
        process.send_signal(number)
        said = process.communicate(timeout=120)[0]
        seconds.append(time.time() - began)
        found = re.search(r"preempted at step (\d+)", said)
        committed.append(found is not None and newest(training) == int(found[1]) and not orphans(training))
        lost.append(max(map(int, re.findall(r"^step (\d+)/", said, re.MULTILINE))) - newest(training))
        lab.forget(training)
    name = "SIGTERM or SIGINT to the launcher"
    yield from counted(name, {"committed, no process left": committed})
    yield Row(name, "steps lost, max", str(max(lost)), "0", max(lost) == 0, len(lost))
    yield Row(name, "ended after s, median (max)", spread(seconds), "", True, len(seconds))


def _ended(lab: Lab, name: str, harm: Callable[[Training], None], trials: int) -> Iterator[Row]:
    seconds, clean = [], []
    for _ in range(trials):
        training = lab.training()
        process = start(training)
        wait_for(lambda training=training: newest(training) >= 5, process)
        began = time.time()
        harm(training)
        process.communicate(timeout=180)
        seconds.append(time.time() - began)
        clean.append(process.returncode != 0 and not orphans(training))
        lab.forget(training)
    yield from counted(name, {"the job ends, no process left": clean})
    yield Row(name, "ended after s, median (max)", spread(seconds), "", True, len(seconds))


def start(training: Training) -> subprocess.Popen[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    settings = [word for setting in _SETTINGS for word in ("--set", setting)]
    command = ["deepspeed", "--hostfile", "hostfiles/local.hostfile", "--no_ssh_check", "--master_addr", "127.0.0.1"]
    command += ["--log_level", "warning", "--master_port", str(port), "--module", "sam_ds", *training.arguments()]
    command += [*settings, "--timeout", "5"]
    pipe, error = subprocess.PIPE, subprocess.STDOUT
    # What was itself started in the background has SIGINT ignored, and would hand that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=error, text=True)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 180
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.1)


def ranks(training: Training) -> list[int]:
    """The processes that train, in the order of their ranks."""
    found = {}
    for pid in orphans(training):
        if "sam_ds" not in _words(pid):  # -m sam_ds, and not what a rank has started beside it
            continue
        pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
        environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if "LOCAL_RANK" in environment:
            found[int(environment["RANK"])] = pid
    return [found[rank] for rank in sorted(found)]


def orphans(training: Training) -> list[int]:
    """Processes of this training: they name its folder."""
    pids = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [pid for pid in pids if str(training.output) in _words(pid)]


def _words(pid: int) -> list[str]:
    """Its command line; none if it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []
