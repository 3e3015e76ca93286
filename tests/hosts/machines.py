"""Hosts on one machine: network namespaces with their own addresses, names and process ids, an sshd in each.

They share the machine's files, as hosts of a cluster share theirs. What an earlier run has left, even one that was
killed, is taken away first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "SAM_DS_HOSTS"  # set where hosts may be made
PROGRAMS = {"ip": "iproute2", "nsenter": "util-linux", "/usr/sbin/sshd": "openssh-server", "pdsh": "pdsh"}
_BRIDGE, _NETWORK, _PREFIX = "samds", "10.213.7", "samds-"
_PATIENCE = 30.0  # seconds until an sshd answers
# The namespace of process ids is each host's own, too: the launcher's end kills by name all that it can see.
_UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts")
_SSHD = """
HostKey {folder}/host
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
PidFile none
MaxStartups 200:30:400
SetEnv PATH={folder}/{name}:{python}:/usr/sbin:/usr/bin:/sbin:/bin
"""
_SSH = """
Host *
  IdentityFile {folder}/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  ServerAliveInterval 5
"""


def why_not() -> str:
    """Why no hosts can be made here; "" if they can."""
    if not os.environ.get(VARIABLE):
        return "make test-hosts runs it: it makes hosts"
    if os.geteuid() != 0:
        return "only root can make hosts of namespaces"
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    if missing:
        return f"not installed: {', '.join(missing)}; make test-hosts installs them"
    tried = subprocess.run(["unshare", "--net", "--pid", "--uts", "--fork", "true"], check=False, capture_output=True)
    if tried.returncode:
        return "this machine permits no namespaces"
    return ""


@dataclass(frozen=True)
class Machine:
    """One host."""

    name: str
    outer: subprocess.Popen[bytes]  # made its namespaces
    init: int  # the first of its processes, which takes all others along
    folder: Path  # of programs that it finds first

    def start(self, *words: object, cwd: Path, **variables: str) -> subprocess.Popen[str]:
        """Run a command there; what it says is one stream."""
        inside = ("nsenter", f"--target={self.init}", "--net", "--pid", "--mount", "--uts", f"--wdns={cwd}")
        path = f"{self.folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.Popen(
            [*inside, *map(str, words)],
            env=os.environ | {"PATH": path} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*words, cwd=cwd, **variables)
        said, _ = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, said)

    def unplug(self) -> None:
        """No packet leaves or reaches it any more."""
        _ip("link", "set", _link(self.name), "down")

    def kill(self) -> None:
        """All of its processes are gone at once; whoever is connected to them is told, unless it is unplugged."""
        os.kill(self.init, signal.SIGKILL)


@contextlib.contextmanager
def machines(names: Sequence[str], folder: Path) -> Iterator[dict[str, Machine]]:
    """Make hosts that reach each other by name over ssh, without a password, as root.

    Args:
        names: of the hosts.
        folder: for keys, logs, and a folder of programs for each host.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with Path("/run/lock/sam_ds_hosts").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # there is one bridge, whoever else runs tests here
        _take_away()
        made: list[Machine] = []
        try:
            _make(names, folder, made)
            yield {machine.name: machine for machine in made}
        finally:
            _take_away()
            for machine in made:
                machine.outer.wait(_PATIENCE)


def _make(names: Sequence[str], folder: Path, made: list[Machine]) -> None:
    """Appends to ``made``, of which what is there is there even if another cannot be made."""
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it
    for key in ("key", "host"):
        if not (folder / key).exists():
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
    _ip("link", "add", _BRIDGE, "type", "bridge")
    _ip("link", "set", _BRIDGE, "up")
    addresses = {name: f"{_NETWORK}.{number}" for number, name in enumerate(names, start=1)}
    made.extend(_make_one(name, addresses, folder) for name in names)
    for machine in made:
        _wait_for_sshd(machine)


def _make_one(name: str, addresses: dict[str, str], folder: Path) -> Machine:
    namespace, link, programs = _PREFIX + name, _link(name), folder / name
    programs.mkdir(exist_ok=True)
    _ip("netns", "add", namespace)
    _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    _ip("link", "set", link, "master", _BRIDGE)
    _ip("link", "set", link, "up")
    _ip("-n", namespace, "address", "add", f"{addresses[name]}/24", "dev", "eth0")
    for device in ("eth0", "lo"):
        _ip("-n", namespace, "link", "set", device, "up")
    # What `ip netns exec` shows there in place of the machine's own files.
    etc = Path("/etc/netns") / namespace
    (etc / "ssh").mkdir(parents=True)
    known = [f"{address} {other}" for other, address in addresses.items()]
    (etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *known, ""]))
    (etc / "ssh" / "ssh_config").write_text(_SSH.format(folder=folder))
    config = folder / f"sshd_{name}"
    config.write_text(_SSHD.format(folder=folder, name=name, python=Path(sys.executable).parent))
    command = f"hostname {name} && exec /usr/sbin/sshd -D -e -f {config}"
    with (folder / f"{name}.log").open("w") as log:
        outer = subprocess.Popen(
            ["ip", "netns", "exec", namespace, *_UNSHARE, "bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return Machine(name, outer, _child(outer), programs)


def _child(outer: subprocess.Popen[bytes]) -> int:
    """The process that ``unshare`` forks: the first of its namespace."""
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    until = time.monotonic() + _PATIENCE
    while not (found := children.read_text().split()):
        assert outer.poll() is None and time.monotonic() < until, "no namespace of process ids"
        time.sleep(0.02)
    return int(found[0])


def _wait_for_sshd(machine: Machine) -> None:
    until = time.monotonic() + _PATIENCE
    while machine.run("ssh", machine.name, "true", cwd=Path("/")).returncode:
        assert time.monotonic() < until, (machine.folder.parent / f"{machine.name}.log").read_text()
        time.sleep(0.1)


def _take_away() -> None:
    """Every host of every run, and all that runs on it."""
    for line in _ip("netns", "list").splitlines():
        namespace = line.split()[0]
        if namespace.startswith(_PREFIX):
            for pid in _ip("netns", "pids", namespace).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _ip("netns", "delete", namespace)
            shutil.rmtree(Path("/etc/netns") / namespace, ignore_errors=True)
    for link in Path("/sys/class/net").glob(f"{_BRIDGE}*"):
        with contextlib.suppress(subprocess.CalledProcessError):  # it goes with its namespace, at some time
            _ip("link", "delete", link.name)
    with contextlib.suppress(OSError):  # others have theirs there
        Path("/etc/netns").rmdir()


def leftovers() -> Iterator[str]:
    """What is there of hosts."""
    yield from (line for line in _ip("netns", "list").splitlines() if line.startswith(_PREFIX))
    yield from (link.name for link in Path("/sys/class/net").glob(f"{_BRIDGE}*"))
    yield from (path.name for path in Path("/etc/netns").glob(f"{_PREFIX}*"))


def _link(name: str) -> str:
    """The end of a host's cable that is plugged into the bridge."""
    return f"{_BRIDGE}-{name}"


def _ip(*words: str) -> str:
    return _run("ip", *words)


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
