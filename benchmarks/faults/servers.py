"""A tracking server that is away: refuses, hangs, answers 500, or dies in the middle, and comes back."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from faults.lab import Lab, Row, counted
from faults.lives import STEPS, live, weights

_BACK = 6.0  # seconds after the start of the training at which the server answers again
_ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
MODES = ("refuses", "hangs", "answers 500", "dies")


class Proxy:
    """Stands before a server: passes connections on, or does to them what ``mode`` says."""

    def __init__(self, server: int) -> None:
        self._server = server
        self.mode = "passes"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client = self._listener.accept()[0]
            if self.mode == "passes":
                server = socket.create_connection(("127.0.0.1", self._server))
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()
            elif self.mode == "hangs":
                threading.Timer(60.0, client.close).start()
            elif self.mode == "answers 500":
                with suppress(OSError):
                    client.recv(1 << 16)
                    client.sendall(
                        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    )
                client.close()
            else:  # refuses: as near as one comes who holds the port
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.close()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while self.mode == "passes" and (data := source.recv(1 << 16)):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def mlflow_server(folder: Path) -> Iterator[int]:
    """A real one; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "server.log").open("w") as log:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes less
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(port, server)
        yield port
    finally:
        server.terminate()
        server.wait(30)


def _wait(port: int, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while True:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return
        assert server.poll() is None and time.monotonic() < until, "the MLflow server does not start"
        time.sleep(0.5)


def tracking_faults(lab: Lab) -> Iterator[Row]:
    with mlflow_server(lab.root) as port:
        proxy = Proxy(port)
        environment = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{proxy.port}"}
        for mode in MODES:
            finished, complete, exact = [], [], []
            for seed in range(lab.few):
                training = lab.training(
                    environment=environment, settings=("tracking.mlflow=true", f"tracking.experiment={mode} {seed}")
                )
                proxy.mode = "passes" if mode == "dies" else mode
                timers = [threading.Timer(_BACK, setattr, (proxy, "mode", "passes"))]
                if mode == "dies":
                    timers.append(threading.Timer(2.0 + 0.4 * seed, setattr, (proxy, "mode", "refuses")))
                for timer in timers:
                    timer.start()
                finished.append(live(training).finished)
                complete.append(_complete(port, f"{mode} {seed}"))
                exact.append(weights(training) == weights(lab.reference))
                lab.forget(training)
            name = f"MLflow {mode}" + (" in the middle of a run" if mode == "dies" else "") + ", and comes back"
            outcomes = {"no metric missing, one run": complete, "ended bit-exact": exact}
            yield from counted(name, {"the training went on": finished, **outcomes})


def _complete(port: int, experiment: str) -> bool:
    """Whether the server has one run of the experiment, with every step's loss once, in order."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{port}")
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id]) if found else []
    if len(runs) != 1:
        return False
    history = client.get_metric_history(runs[0].info.run_id, "loss/total")
    return [metric.step for metric in history] == list(range(1, STEPS + 1))
