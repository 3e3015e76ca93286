"""A host, asked over ssh what it has."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sam_ds.config.errors import UserError

_PROBE = Path(__file__).with_name("probe.py")
# What ssh says in English, what that means, and the way out.
_SSH_SAYS = {
    "Could not resolve hostname": "its name is unknown here; correct the hostfile, or add it to /etc/hosts",
    "Connection refused": "it refuses ssh; start sshd there",
    "timed out": "it does not answer; is it up, and is this the network it is in?",
    "No route to host": "there is no way to it; is it up, and is this the network it is in?",
    "Network is unreachable": "there is no way to it; is this the network it is in?",
    "Permission denied": "it lets nobody in without a password; run: ssh-copy-id {host}",
    "Host key verification failed": "its key is not known here, or is another one now; run once: ssh {host}",
}
_NO_PYTHON = (126, 127)  # exit codes of shells that find no such program, or none that they may run
_SSH_FAILED = 255


@dataclass(frozen=True)
class Answer:
    """What a host has, as ``probe`` tells it, or why nothing is known of it."""

    report: dict[str, Any] = field(default_factory=dict)
    fault: str = ""


@contextlib.contextmanager
def asked(host: str | None, python: str, wanted: dict[str, Any], timeout: float) -> Iterator[Answer]:
    """Run the probe on a host; while the context lasts, it may stay there and answer others.

    Args:
        host: for ssh; None: this machine, without ssh.
        python: the path of the Python there.
        wanted: for ``probe.main``.
        timeout: seconds until a host that has not answered is given up.

    Raises:
        UserError: there is no ssh here.
    """
    command = [python, "-"] if host is None else [*_ssh(timeout), host, f"{shlex.quote(python)} -"]
    environment = os.environ | {"LC_ALL": "C"}  # ssh's words are looked at
    with tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        except OSError as error:
            raise UserError(f"{command[0]} cannot be run here ({error.strerror}): install it") from None
        with process:
            try:
                timer = threading.Timer(timeout, process.kill)
                timer.start()
                try:
                    answer = _answer(process, wanted, errors, host or "", timeout)
                finally:
                    timer.cancel()  # an answer is all that it has to be in time with: the others take time too
                yield answer
            finally:
                process.terminate()


def _ssh(timeout: float) -> list[str]:
    return ["ssh", "-T", "-x", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, int(timeout / 2))}"]


def _answer(
    process: subprocess.Popen[str], wanted: dict[str, Any], errors: IO[str], host: str, timeout: float
) -> Answer:
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended already, and says why
        process.stdin.write(f"{_PROBE.read_text(encoding='utf-8')}\n\nmain(json.loads({json.dumps(wanted)!r}))\n")
        process.stdin.close()
    doing = ""
    for line in process.stdout:
        said = _parsed(line)
        if "report" in said:
            return Answer(said["report"])
        doing = said.get("doing", doing)
    code = process.wait()
    errors.seek(0)
    lines = [line.strip() for line in errors if line.strip()]
    return Answer(fault=_fault(code, doing, lines[-1] if lines else "", host, timeout))


def _parsed(line: str) -> dict[str, Any]:
    """A line of the probe; nothing for what a login script prints."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _fault(code: int, doing: str, said: str, host: str, timeout: float) -> str:
    if code < 0:  # killed by the timer
        where = f"it hangs at {doing}" if doing else "it takes ssh, but runs nothing"
        return f"{where}, for {timeout:g} s; mend that, or give it more time with --timeout"
    if code == _SSH_FAILED:
        meant = (text.format(host=host) for words, text in _SSH_SAYS.items() if words in said)
        return next(meant, f"ssh fails there: {said}; try: ssh {host}")
    if code in _NO_PYTHON:
        return f"it has no such Python ({said}); install at the same path on all hosts, or name it with --python"
    return f"its Python cannot look around (exit code {code}: {said}); try: ssh {host}"
