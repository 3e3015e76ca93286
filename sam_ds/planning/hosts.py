"""Are the hosts of a hostfile ready for a training? What each of them has, compared with what it must have."""

from __future__ import annotations

import os
import secrets
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sam_ds.config.hostfile import Host, world_size
from sam_ds.planning import probe
from sam_ds.planning.remote import Answer, asked

_MAX_SKEW = 1.0  # seconds between clocks
_LOCAL = ("localhost", "127.0.0.1")

V = TypeVar("V", bound=Hashable)


@dataclass(frozen=True)
class Needs:
    """What a training will use on every host."""

    data: tuple[str, ...] = ()  # folders of pictures
    output: str = ""  # the run folder; "": not looked at
    checkpoint: int = 0  # bytes of one
    checkpoints: int = 0  # bytes of all that will be there at once


@dataclass(frozen=True)
class Cluster:
    """Where it will run, and how it is reached."""

    hosts: tuple[Host, ...]
    hostfile: str  # for messages
    python: str = sys.executable  # its path on every host
    master: str = ""  # the address that the ranks meet at; "": as DeepSpeed's launcher chooses
    port: int = 29500
    gpus: bool = True  # its slots are GPUs
    timeout: float = 20.0  # seconds for each host


@dataclass
class Findings:
    faults: list[str] = field(default_factory=list)  # one line each: where, what, and the way out
    notes: list[str] = field(default_factory=list)  # what need not be mended
    summary: str = ""


def look_here(needs: Needs) -> Findings:
    """What of ``needs`` this machine lacks. Takes seconds at most."""
    findings = Findings()
    for folder in needs.data:
        _judge_pictures("", folder, probe.pictures(folder), findings)
    if needs.output:
        _judge_output("", needs, probe.writable(needs.output), findings)
    return findings


def look_at(cluster: Cluster, needs: Needs) -> Findings:
    """Ask all hosts at once what they have.

    First comes the one that the ranks will meet at: while the others are asked, it listens for them, tells them its
    time, and holds a file in the output folder that they should see.

    Raises:
        UserError: there is no ssh here.
    """
    findings = Findings()
    first, *others = cluster.hosts
    alone = not others and first.name in _LOCAL  # as the launcher, which then needs no ssh
    wanted: dict[str, Any] = {
        "folder": os.getcwd(),
        "gpus": cluster.gpus,
        "data": needs.data,
        "output": needs.output,
        "interfaces": _told_interfaces(findings),
        "token": secrets.token_hex(8),
    }
    to_first = wanted | {"listen": cluster.port, "seconds": 2 * cluster.timeout}
    with asked(None if alone else first.name, cluster.python, to_first, cluster.timeout) as answer:
        master = _master(cluster, answer.report)
        to_others = wanted | {"master": master, "marker": answer.report.get("marker")}

        def ask(host: Host) -> Answer:
            with asked(host.name, cluster.python, to_others, cluster.timeout) as given:
                return given

        with ThreadPoolExecutor(max(1, len(others))) as pool:
            answers = {first: answer} | dict(zip(others, pool.map(ask, others), strict=True))
    findings.faults += [f"{host.name}: {given.fault}" for host, given in answers.items() if given.fault]
    reports = {host: given.report for host, given in answers.items() if given.report}
    _judge(cluster, needs, reports, findings)
    if others:
        _judge_network(cluster, reports, master, findings)
        _judge_here(first, findings)
    ranks = world_size(cluster.hosts)
    ways = sorted({report.get("interface") or "" for report in reports.values()} - {""})
    where = f"; they meet at {master[0]}:{master[1]}, by {' and '.join(ways)}" if master and ways else ""
    findings.summary = f"{len(cluster.hosts)} host{'s' * bool(others)}, {ranks} ranks{where}"
    return findings


def _told_interfaces(findings: Findings) -> dict[str, str]:
    """The variables that tell gloo and NCCL their network interfaces, as the launcher hands them on to all hosts.

    Of a shell's own variables it hands on those of NCCL; a ``.deepspeed_env`` goes before them.
    """
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    told = {probe.NCCL: os.environ.get(probe.NCCL, "")}
    for path in dict.fromkeys(folder / name for folder in (Path.home(), Path())):
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for number, line in enumerate(text.splitlines(), start=1):
            key, found, value = line.partition("=")
            if not found:
                findings.faults.append(
                    f"this machine: {path}, line {number}: {line!r} is not NAME=value, and the launcher takes nothing "
                    "else, no empty line either; correct it"
                )
            if key.strip() in (probe.GLOO, probe.NCCL):
                told[key.strip()] = value.strip()
    return told


def _master(cluster: Cluster, first: Mapping[str, Any]) -> tuple[str, int] | None:
    """Where the ranks will meet, if that is known and free."""
    address = cluster.master or next(iter(first.get("addresses", ())), "")
    return (address, cluster.port) if address and first and "taken" not in first else None


def _judge(cluster: Cluster, needs: Needs, reports: Mapping[Host, dict[str, Any]], findings: Findings) -> None:
    """What concerns each host, and what must be alike on all."""
    for host, report in reports.items():
        if not report["folder"]:
            findings.faults.append(
                f"{host.name}: there is no folder {os.getcwd()}, where the launcher starts the ranks; "
                "install at the same path on all hosts"
            )
        if cluster.gpus:
            _judge_slots(cluster, host, report["gpus"], findings)
        for folder, found in report["data"].items():
            _judge_pictures(f"{host.name}: ", folder, found, findings)
    versions = {host.name: report["versions"] for host, report in reports.items()}
    for package in dict.fromkeys(name for known in versions.values() for name in known):
        has = {host: known[package] for host, known in versions.items() if package in known}
        for odd, version, other, usual, many in _odd(has):
            findings.faults.append(
                f"{odd}: {package} is {version or 'not installed'}, and {usual or 'not installed'} on {other} "
                f"({many} of {len(has)} hosts); install the same everywhere"
            )
    for folder in needs.data:
        found = {host.name: report["data"][folder] for host, report in reports.items()}
        # Of those that hold nothing, that has been said.
        signatures = {name: known["signature"] for name, known in found.items() if known.get("files")}
        signatures = {name: signature for name, signature in signatures.items() if signature}
        for odd, _, other, _, many in _odd(signatures):
            findings.faults.append(
                f"{odd}: {folder} holds {found[odd]['files']} files, which are not the {found[other]['files']} of "
                f"{other} ({many} of {len(signatures)} hosts); give all the same set"
            )
    for place, (host, report) in enumerate(reports.items()):
        if needs.output:
            space = needs if place == 0 else Needs(output=needs.output)  # it is the same folder
            _judge_output(f"{host.name}: ", space, report["output"], findings)


def _odd(values: Mapping[str, V]) -> Iterator[tuple[str, V, str, V, int]]:
    """Hosts whose value is not the most frequent (of equally frequent ones, the first): with their value, the first
    host that has the usual one, that value, and how many have it."""
    if values:
        usual, many = Counter(values.values()).most_common(1)[0]
        other = next(name for name, value in values.items() if value == usual)
        yield from ((name, value, other, usual, many) for name, value in values.items() if value != usual)


def _judge_slots(cluster: Cluster, host: Host, gpus: int, findings: Findings) -> None:
    where = f"{host.name}: {cluster.hostfile} gives it slots={host.slots}, and nvidia-smi shows {gpus} GPUs there"
    if gpus == 0:
        findings.faults.append(f"{where}; install its driver, or set DS_ACCELERATOR=cpu to train on CPUs")
    elif gpus < host.slots:
        findings.faults.append(f"{where}; write slots={gpus}, or look for those that are lost")
    elif gpus > host.slots:
        findings.notes.append(f"{where}; the others will be idle")


def _judge_pictures(where: str, folder: str, found: Mapping[str, Any], findings: Findings) -> None:
    """``where`` begins the message."""
    if "problem" in found:
        findings.faults.append(f"{where}{folder}: {found['problem']}; give a folder of tars or of pictures")
    elif not found["files"]:
        findings.faults.append(f"{where}{folder} holds no picture; give a folder of tars or of pictures")
    elif found["signature"] is None:
        findings.notes.append(f"{where}{folder} has too many files to be compared in seconds; put them into tars")


def _judge_output(where: str, needs: Needs, found: Mapping[str, Any], findings: Findings) -> None:
    if "problem" in found:
        findings.faults.append(f"{where}{needs.output} cannot be written ({found['problem']}); choose another --output")
        return
    free = found["free"]
    if free < needs.checkpoint:
        findings.faults.append(
            f"{where}{found['place']} has {free / 1e9:.2f} GB free, and a checkpoint of this model needs "
            f"{needs.checkpoint / 1e9:.2f}; free some, or choose another --output"
        )
    elif free < needs.checkpoints:
        findings.notes.append(
            f"{where}{found['place']} lacks {(needs.checkpoints - free) / 1e9:.2f} GB for the checkpoints that the "
            "recipe will have there"
        )


def _judge_network(
    cluster: Cluster, reports: Mapping[Host, dict[str, Any]], master: tuple[str, int] | None, findings: Findings
) -> None:
    first = cluster.hosts[0]
    if "taken" in reports.get(first, {}):
        findings.faults.append(
            f"{first.name}: port {cluster.port} is taken ({reports[first]['taken']}); give this and the launcher "
            "another --master_port"
        )
    for host, report in reports.items():
        name, said = report["name"], f"{host.name}: "
        if name["missing"]:
            missing = " or ".join(name["missing"])
            findings.faults.append(f"{said}has no network interface {missing}; correct {probe.GLOO}")
        elif not name["told"] and (not name["address"] or name["address"].startswith("127.")):
            interface = report.get("interface") or "eth0"
            findings.faults.append(
                f"{said}its own name {name['host']} means {name['address'] or 'nothing'} there, where nobody can reach "
                f"it; correct its /etc/hosts, or write {probe.GLOO}={interface} into a file .deepspeed_env here"
            )
        if cluster.gpus and name["unfit"]:
            findings.faults.append(
                f"{said}{probe.NCCL}={name['unfit']} fits none of its network interfaces ({', '.join(name['there'])}); "
                f"correct {probe.NCCL}"
            )
        if "unheard" in report and master:
            findings.faults.append(
                f"{said}it cannot reach {first.name} at {master[0]}:{master[1]} ({report['unheard']}); open the port, "
                "or give this and the launcher an address that all reach with --master_addr"
            )
        if not report.get("marker", True):
            findings.faults.append(
                f"{said}it does not see what {first.name} writes to {reports[first]['output']['place']}; "
                "--output must lie in a file system that all hosts share"
            )
    _judge_clocks(first, {host: report["later"] for host, report in reports.items() if "later" in report}, findings)


def _judge_clocks(first: Host, later: Mapping[Host, float], findings: Findings) -> None:
    """``later``: seconds that a host's clock is ahead of the first host's."""
    clocks = {first: 0.0, **later}
    right = statistics.median_low(clocks.values()) if len(clocks) > 2 else 0.0
    for host, ahead in clocks.items():
        if abs(ahead - right) > _MAX_SKEW:
            findings.faults.append(
                f"{host.name}: its clock is {abs(ahead - right):.1f} s {'ahead' if ahead > right else 'behind'}; "
                "set it with NTP (chrony, systemd-timesyncd)"
            )


def _judge_here(first: Host, findings: Findings) -> None:
    """What the launcher needs on the machine that it is started on."""
    if not shutil.which("pdsh"):
        findings.faults.append(
            "this machine: there is no pdsh, which the deepspeed launcher starts the hosts with; install it"
        )
    settings = subprocess.run(["ssh", "-G", first.name], check=False, capture_output=True, text=True).stdout
    if "serveraliveinterval 0" in settings.splitlines() and "ServerAlive" not in os.environ.get(
        "PDSH_SSH_ARGS_APPEND", ""
    ):
        findings.notes.append(
            "this machine: its ssh does not notice that a host is gone, and the launcher would wait for ever; write "
            "ServerAliveInterval 15 into ~/.ssh/config"
        )
