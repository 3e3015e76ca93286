"""Processes that make batches ahead of time, each of which may be killed at any moment.

torch's DataLoader cannot go on when a worker dies: its handler of SIGCHLD raises in the main thread wherever that is,
in the middle of a collective too, and a worker killed while it holds the lock of their common queue blocks all others.
Here no two workers share anything. Each has a socket that keeps messages whole, and hands a batch over as a file in
memory whose descriptor travels with the message: what a worker has sent stays readable when it is gone, and what it
has not is made anew by the one that takes its place. As a batch is a function of its key, nobody can tell.
"""

from __future__ import annotations

import io
import logging
import mmap
import os
import pickle
import signal
import socket
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import cycle, islice
from multiprocessing import Process
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam_ds.config.errors import RankError, UserError
from sam_ds.config.signals import leave_to_the_training

_AHEAD = 4  # batches a worker makes ahead; sockets of some machines hold ten messages
_DEATHS = 5  # so many workers in a row may die of one batch
_TICK = 1.0  # seconds between two looks at whether the other process still lives
_SLOW = 60  # ticks without a batch after which the user is told
_ALIGNMENT = 64  # bytes; what vector instructions like best
_MESSAGE = 1 << 18  # bytes; a socket takes no longer ones

_logger = logging.getLogger(__name__)


def make_ahead(make: Callable[[Any], Any], keys: Iterator[Any], num_workers: int) -> Iterator[Any]:
    """``map(make, keys)``, by worker processes.

    Args:
        make: a function of the key alone; a process that is spawned must be able to unpickle it.

    Raises:
        UserError: ``make`` raised it, workers die again and again of one batch, or the machine has no more to give.
    """
    workers = [_Worker(make) for _ in range(num_workers)]
    try:
        for key, worker in zip(islice(keys, _AHEAD * num_workers), cycle(workers), strict=False):
            worker.give(key)
        for worker in cycle(workers):
            if not worker.keys:  # they are served in turn, so the others have none either
                return
            made = worker.take()
            for key in islice(keys, 1):
                worker.give(key)
            yield made
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """One process and what it is to make. When it dies, another one goes on with that."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.keys: deque[Any] = deque()  # given, and not taken yet
        self._make = make
        self._deaths = 0  # since a batch was taken
        self._start()

    def give(self, key: Any) -> None:
        self.keys.append(key)
        self._tell(key)

    def take(self) -> Any:
        """What was made of the first key, as soon as it is there."""
        ticks = 0
        while True:
            lives = self._process.is_alive()
            try:
                message, descriptors, flags, _ = socket.recv_fds(self._channel, _MESSAGE, 1)
            except TimeoutError:
                ticks += 1
                if ticks == _SLOW:
                    _logger.warning("no batch for %.0f s: the storage is slow, or data.workers too low", ticks * _TICK)
                if not lives:
                    self._replace()
                continue
            except ConnectionResetError:  # it died with keys unread; what it sent before comes now
                continue
            if not message:
                self._replace()
                continue
            if flags & socket.MSG_CTRUNC:
                raise RankError("this process may not open more files: raise the limit (ulimit -n 65536)")
            self._deaths = 0
            self.keys.popleft()
            return _opened(message, descriptors)

    def end(self) -> None:
        self._process.kill()  # it keeps nothing, and may be in the middle of a read that takes minutes
        self._process.join(_TICK)
        self._channel.close()

    def _start(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(_TICK)
        with theirs:  # only the worker keeps it, so that its end is seen here
            self._process = Process(target=_work, args=(self._make, theirs), daemon=True)
            try:
                self._process.start()
            except OSError as error:
                raise RankError(f"a loader process cannot be started: {error.strerror}: lower data.workers") from error
        for key in self.keys:
            self._tell(key)

    def _tell(self, key: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it is dead: ``take`` finds out, and tells the next one
            self._channel.send(pickle.dumps(key))

    def _replace(self) -> None:
        self._process.kill()
        self._process.join()
        self._channel.close()
        self._deaths += 1
        code = self._process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if self._deaths == _DEATHS:
            raise RankError(
                f"{_DEATHS} loader processes in a row died of the same batch, the last {how}: if the machine is out of "
                "memory (its kernel's log tells), lower data.workers; data.workers=0 shows any other reason"
            )
        _logger.warning("a loader process (%s) %s; another goes on from its batch", self._process.pid, how)
        self._start()


class _Failure:
    """What went wrong in a worker, as text: an exception loses its traceback on the way."""

    def __init__(self, text: str) -> None:
        self.text = text


def _work(make: Callable[[Any], Any], channel: socket.socket) -> None:
    """A worker: it makes batches until the training ends it or is gone."""
    parent = os.getppid()
    torch.set_num_threads(1)  # workers are many: each keeps to one core
    leave_to_the_training()
    channel.settimeout(_TICK)
    while os.getppid() == parent:
        try:
            message = channel.recv(_MESSAGE)
        except TimeoutError:
            continue
        except ConnectionResetError:  # the training was killed
            return
        if not message:
            return
        made = _made(make, pickle.loads(message))
        try:
            _send(channel, made)
        except OSError as error:
            channel.send(pickle.dumps(RankError(_no_room(error))))


def _made(make: Callable[[Any], Any], key: Any) -> Any:
    try:
        return make(key)
    except UserError as error:
        return error
    except MemoryError:
        return RankError("a loader process is out of memory: lower data.workers")
    except Exception:  # a mistake of ours: ``_opened`` raises it in the training, this process's traceback with it
        return _Failure(traceback.format_exc())


def _no_room(error: OSError) -> str:
    return f"a loader process cannot hand a batch over: {error.strerror}: raise ulimit -n, or lower data.workers"


class _Pickler(pickle.Pickler):
    """Leaves the content of tensors out, for the buffers."""

    def reducer_override(self, value: Any) -> Any:
        return (_tensor, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(array)


def _send(channel: socket.socket, made: Any) -> None:
    """A file in memory with the pickle and the tensors' buffers; the message has their sizes."""
    buffers: list[pickle.PickleBuffer] = []
    rest = io.BytesIO()
    _Pickler(rest, protocol=5, buffer_callback=buffers.append).dump(made)
    parts = [rest.getbuffer(), *(buffer.raw() for buffer in buffers)]
    with open(os.memfd_create("sam_ds_batch"), "wb") as file:
        for part in parts:
            file.write(part)
            file.write(bytes(-part.nbytes % _ALIGNMENT))
        file.flush()
        sizes = np.array([part.nbytes for part in parts], np.int64)
        socket.send_fds(channel, [sizes.tobytes()], [file.fileno()])


def _opened(message: bytes, descriptors: Sequence[int]) -> Any:
    """What a worker made, its tensors lying where the worker wrote them; raises what it raised."""
    if descriptors:
        with open(descriptors[0], "rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0))
        parts, at = [], 0
        for size in np.frombuffer(message, np.int64).tolist():
            parts.append(content[at : at + size])
            at += size + -size % _ALIGNMENT
        made = pickle.loads(parts[0], buffers=parts[1:])
    else:
        made = pickle.loads(message)
    if isinstance(made, UserError):
        raise made
    if isinstance(made, _Failure):
        raise RuntimeError(f"a loader process failed:\n{made.text}")
    return made
