"""The hostfile: where a training runs, one ``host slots=N`` a line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sam_ds.config.errors import UserError

# A host that began with a dash would be an option to ssh.
_LINE = re.compile(r"(?P<host>(?!-)[\w.:@%-]+)\s+slots=(?P<slots>\d{1,5})", re.ASCII)


@dataclass(frozen=True)
class Host:
    name: str
    slots: int  # ranks, one a GPU


def load(path: str | Path) -> tuple[Host, ...]:
    """Read a hostfile; ``#`` starts a comment.

    Raises:
        UserError: the file or a line cannot be read, a host is there twice, or there is none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot read the hostfile ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: the hostfile is not text") from None
    hosts: dict[str, Host] = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None or int(match["slots"]) < 1:
            raise UserError(f"{path}, line {number}: {text!r} must be written as: host slots=8")
        if match["host"] in hosts:
            raise UserError(f"{path}, line {number}: host {match['host']} is there twice; add up its slots in one line")
        hosts[match["host"]] = Host(match["host"], int(match["slots"]))
    if not hosts:
        raise UserError(f"{path}: no host in it; write one a line: host slots=8")
    return tuple(hosts.values())


def world_size(hosts: tuple[Host, ...]) -> int:
    """How many ranks the hosts start together."""
    return sum(host.slots for host in hosts)
