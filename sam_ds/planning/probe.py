"""What one host has, as JSON: this file, and nothing else of ours, is sent to the Python of every host over ssh.

So it needs the standard library only. Every line that it prints is a JSON object: what it is about to look at
(``doing``), so that whoever waits knows where it hangs, and at last all that it found (``report``).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"  # the variables that tell them their network interfaces
_PACKAGES = ("torch", "triton", "deepspeed")
# What a training may read, whatever its task.
_READ = (".tar", ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".json")
_LISTING = 5.0  # seconds that going through a folder of data may take
_SIOCGIFADDR = 0x8915  # of Linux: the IPv4 address of an interface


def main(wanted: dict[str, Any]) -> None:
    """Look at this host and print what is found.

    ``wanted``: ``folder`` (where the launcher is started), ``gpus`` (whether to look for them), ``data`` (folders),
    ``output`` (a folder or None), ``interfaces`` (of the network: what gloo and NCCL are told, by variable), ``token``
    (of this check). The first host gets ``listen`` (a port) and ``seconds`` (how long it is there for the others at
    most); the others get ``master`` (its address and port, or None) and ``marker`` (a file that it wrote, or None).
    """
    tell(doing=f"the folder {wanted['folder']}")
    report: dict[str, Any] = {"folder": os.path.isdir(wanted["folder"])}
    if report["folder"]:
        os.chdir(wanted["folder"])
    tell(doing="the installed packages")
    report["versions"] = versions()
    if wanted["gpus"]:
        tell(doing="nvidia-smi")
        drivers = gpus()
        report["gpus"] = len(drivers)
        report["versions"].update({"driver": drivers[0]} if drivers else {})
    report["data"] = {}
    for folder in wanted["data"]:
        tell(doing=f"the data folder {folder}")
        report["data"][folder] = pictures(folder)
    if wanted["output"]:
        tell(doing=f"the output folder {wanted['output']}")
        report["output"] = writable(wanted["output"])
    tell(doing="the network")
    report["name"] = own_name(wanted["interfaces"])
    if "listen" in wanted:
        first_host(wanted, report)
    else:
        report.update(other_host(wanted))
        tell(report=report)


def tell(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def versions() -> dict[str, str | None]:
    """Of Python, of what is installed, and of this project's code, which is the current folder's if it has one."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        found[name] = None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    digest = hashlib.sha256()
    for package in ("sam_ds", "sam_ds_kernels"):
        spec = importlib.util.find_spec(package)
        for root in sorted(spec.submodule_search_locations or []) if spec else []:
            _hash_code(root, digest)
    empty = digest.digest() == hashlib.sha256().digest()
    found["sam_ds"] = None if empty else f"of code {digest.hexdigest()[:8]}"
    return found


def _hash_code(root: str, digest: hashlib._Hash) -> None:
    for folder, folders, files in os.walk(root):
        folders.sort()
        for file in sorted(file for file in files if file.endswith(".py")):
            path = os.path.join(folder, file)
            digest.update(os.path.relpath(path, root).encode())
            with open(path, "rb") as content:
                digest.update(content.read())


def gpus() -> list[str]:
    """The version of the driver of every GPU that nvidia-smi shows."""
    return _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split()


def _said(*command: str) -> str:
    """What a program prints; nothing if it is not there or fails."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return done.stdout.decode()
    return ""


def pictures(folder: str) -> dict[str, str | int | None]:
    """A folder of tars, or of pictures, unopened: how many files, and a signature of all their names.

    The signature has the sizes of tars too, and is equal for the same set wherever it lies; None if there are too many
    files to go through.
    """
    count, total, until = 0, 0, time.monotonic() + _LISTING
    try:
        for path, size in _files(os.path.realpath(os.path.expanduser(folder))):
            count += 1
            word = hashlib.blake2b(os.fsencode(f"{path} {size}"), digest_size=8).digest()
            total = (total + int.from_bytes(word, "big")) % 2**64  # whatever order the file system lists them in
            if time.monotonic() > until:
                return {"files": count, "signature": None}
    except OSError as error:
        return {"problem": error.strerror or str(error)}
    return {"files": count, "signature": f"{total:016x}"}


def _files(root: str) -> Iterator[tuple[str, int]]:
    """(path below ``root``, size of a tar or -1) of whatever a training may read there."""
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.name.lower().endswith(_READ):
                    size = entry.stat().st_size if entry.name.endswith(".tar") else -1
                    yield os.path.relpath(entry.path, root), size


def writable(folder: str) -> dict[str, str | int]:
    """Whether the folder, or the nearest that is there to make it in, can be written; and its free bytes."""
    place = os.path.abspath(folder)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return {"problem": error.strerror or str(error)}
    return {"place": place, "free": shutil.disk_usage(place).free}


def own_name(interfaces: dict[str, str]) -> dict[str, Any]:
    """What this host's name means to itself: gloo waits there for the others, unless it is told an interface.

    ``missing``: interfaces that gloo is told and that are not there; ``unfit``: what NCCL is told, if none fits it.
    """
    name, address = socket.gethostname(), ""
    with contextlib.suppress(OSError):
        address = socket.gethostbyname(name)
    words = {variable: interfaces.get(variable) or os.environ.get(variable, "") for variable in (GLOO, NCCL)}
    told = {word.strip() for word in words[GLOO].split(",") if word.strip()}
    there = [found for _, found in socket.if_nameindex()]
    return {
        "host": name,
        "address": address,
        "told": bool(told),
        "missing": sorted(told - set(there)),
        "unfit": "" if any(nccl_takes(found, words[NCCL]) for found in there) else words[NCCL],
        "there": there,
    }


def nccl_takes(interface: str, told: str) -> bool:
    """Whether NCCL may use an interface, by its documentation of NCCL_SOCKET_IFNAME.

    ``told`` lists beginnings of names; after "=" whole names; after "^" what not to use. ":" and a port may follow a
    name.
    """
    names = told[1:] if told.startswith("^") else told
    exact = names.startswith("=")
    words = [word.partition(":")[0] for word in names[exact:].split(",") if word]
    fits = any(interface == word if exact else interface.startswith(word) for word in words)
    return fits != told.startswith("^") or not words


def first_host(wanted: dict[str, Any], report: dict[str, Any]) -> None:
    """Take the port that the ranks will meet at, tell what was found, and be there for the other hosts."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the marker is deleted
    report["addresses"] = _said("hostname", "-I").split()  # of which DeepSpeed's launcher takes the first
    with contextlib.ExitStack() as stack:
        if "place" in report.get("output", {}):
            marker = tempfile.NamedTemporaryFile(dir=report["output"]["place"], prefix=".sam_ds_check_")  # noqa: SIM115
            report["marker"] = stack.enter_context(marker).name
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", wanted["listen"]))
            listener.listen(1024)
        except OSError as error:
            report["taken"] = error.strerror
        tell(report=report)
        _answer(listener, wanted, "taken" not in report)


def _answer(listener: socket.socket, wanted: dict[str, Any], listening: bool) -> None:
    """Give every other host the token and the time, until whoever has started us is gone."""
    until = time.monotonic() + wanted["seconds"]
    poll = select.poll()
    poll.register(sys.stdout, 0)  # an error of it: the ssh that has started us has closed the other end
    if listening:
        poll.register(listener, select.POLLIN)
    while time.monotonic() < until:
        ready = dict(poll.poll(max(0.0, until - time.monotonic()) * 1000))
        if sys.stdout.fileno() in ready:
            return
        if listener.fileno() in ready:
            client, _ = listener.accept()
            with client, contextlib.suppress(OSError):
                client.settimeout(2.0)
                client.sendall(json.dumps({"token": wanted["token"], "time": time.time()}).encode() + b"\n")


def other_host(wanted: dict[str, Any]) -> dict[str, Any]:
    """Whether the first host is heard, through which interface, and how much later it is here than there, seconds."""
    found: dict[str, Any] = {"marker": not wanted["marker"] or os.path.exists(wanted["marker"])}
    if not wanted["master"]:
        return found
    try:
        with socket.create_connection(wanted["master"], timeout=5.0) as connection:
            asked = time.time()
            answer = json.loads(connection.makefile().readline())
            found["later"] = (asked + time.time()) / 2 - answer["time"]
            found["interface"] = _interface(connection.getsockname()[0])
            if answer["token"] != wanted["token"]:
                found["unheard"] = "another program answers"
    except (ValueError, LookupError, TypeError):
        found["unheard"] = "another program answers"
    except OSError as error:
        found["unheard"] = error.strerror or str(error)
    return found


def _interface(address: str) -> str:
    """The name of the network interface with that address; "" if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""
