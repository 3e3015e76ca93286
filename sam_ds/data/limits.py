"""Limits of the machine that look like faults of the data: a healthy file cannot be opened at this moment."""

from __future__ import annotations

import errno

from sam_ds.config.errors import UserError

_WAYS_OUT = {
    errno.EMFILE: "this process may not open more files: raise the limit (ulimit -n 65536)",
    errno.ENFILE: "the machine may not open more files: raise the limit (sysctl fs.file-max), or lower data.workers",
    errno.ENOMEM: "the machine is out of memory: lower data.workers",
}


def raise_if_of_machine(error: OSError, file: str) -> None:
    """
    Raises:
        UserError: the error says nothing about the file.
    """
    if error.errno in _WAYS_OUT:
        raise UserError(f"{file} cannot be read: {_WAYS_OUT[error.errno]}") from error
