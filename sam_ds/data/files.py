"""The bytes of a set's files, loose or in tars, and nothing else of the machine's."""

from __future__ import annotations

import os
import stat
import weakref
from pathlib import Path
from typing import Any

from sam_ds.data.limits import raise_if_of_machine
from sam_ds.data.scan import LOOSE, leads_outside

_MOST_OPEN = 64  # tars of a Files; SA-1B has a thousand, and a process may often open 1024 files


class BadSampleError(ValueError):
    """This picture cannot be trained on; the message says why."""


class Files:
    """Reads files of one folder. The tars last read stay open: a read is then one ``pread``."""

    def __init__(self, root: Path, shards: list[str]) -> None:
        self.root, self.shards = root, shards
        self._descriptors: dict[int, int] = {}  # by shard, the one last read last
        weakref.finalize(self, _close, self._descriptors)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root, self.shards)

    def read(self, shard: int, name: str, offset: int, size: int, what: str, most: int) -> bytes:
        """The content of a file.

        Args:
            shard: the tar that it lies in, or LOOSE.
            name: of a loose file, relative to the folder.
            offset, size: where it lies in its tar, bytes.
            what: the file is of the picture, for messages.
            most: bytes that are read; a file of more is refused.

        Raises:
            BadSampleError: the place is none, or the file is too large or cut.
            OSError: it cannot be read; ``unreadable`` says what follows from that.
        """
        if shard == LOOSE:
            return self._loose(name, what, most)
        if not 0 <= shard < len(self.shards) or offset < 0 or size < 0:
            raise BadSampleError("its row of the index is damaged: make it anew with sam-ds data index")
        _check_bytes(size, what, most)
        try:
            content = os.pread(self._descriptor(shard), size, offset)
        except OSError:
            if shard in self._descriptors:  # it may be the open file that is bad, not the tar: a server that came back
                os.close(self._descriptors.pop(shard))
            raise
        if len(content) != size:
            raise BadSampleError(f"its tar ends within it: {len(content)} of {size} bytes of the {what}")
        return content

    def _loose(self, name: str, what: str, most: int) -> bytes:
        """A link may lead anywhere that the user may read: it is how sets are shared. A pipe or a device may not."""
        if leads_outside(name):
            raise BadSampleError("its row of the index leads out of the folder: make it anew with sam-ds data index")
        path = self.root / name
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadSampleError(f"its {what} is no file")
        _check_bytes(status.st_size, what, most)
        return path.read_bytes()

    def _descriptor(self, shard: int) -> int:
        descriptor = self._descriptors.pop(shard, None)
        if descriptor is None:
            while len(self._descriptors) >= _MOST_OPEN:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            descriptor = os.open(self.root / self.shards[shard], os.O_RDONLY)
        self._descriptors[shard] = descriptor
        return descriptor


def unreadable(error: OSError, file: str) -> BadSampleError:
    """What a failed read says about a picture.

    Raises:
        UserError: nothing; the machine has no more files or memory to give.
    """
    raise_if_of_machine(error, file)
    return BadSampleError(f"cannot be read: {error.strerror or error}")


def _check_bytes(size: int, what: str, most: int) -> None:
    if size > most:
        raise BadSampleError(f"its {what} has {size:,} bytes, at most {most:,} are read")


def _close(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
