"""The process group: start it, ask who one is, add numbers up over the ranks."""

from __future__ import annotations

import logging
import os
import socket
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor
from torch.distributed.distributed_c10d import _set_pg_timeout, _world

from sam_ds.config.errors import RankError, UserError

TIMEOUT = timedelta(minutes=30)
_LAST_TENSORS = 0.2  # seconds; to drop them takes microseconds
_control: dist.ProcessGroup | None = None  # made with the process group
_timeout = TIMEOUT  # of every group
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Socket closed",
    "remote process exited",
    "Timed out waiting",
)


def init(timeout: timedelta = TIMEOUT) -> None:
    """Join the launcher's process group, or start one of a single process where no launcher ran.

    Raises:
        UserError: the launcher left only a part of its environment, or more ranks than devices.
    """
    if dist.is_initialized():
        return
    _quieten_deepspeed()
    _single_process_environment()
    # 1. DeepSpeed compiles a shared-memory all-reduce for inference when a CPU group starts: a minute, of no use to
    #    training, and a build that is killed half-way leaves a lock on which every later job waits for ever.
    if get_accelerator().device_name() == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # 2. The device comes before the group, or every rank of a machine opens a context on its first GPU.
    elif local_rank() >= get_accelerator().device_count():
        raise RankError(
            f"local rank {local_rank()} has no GPU of its own: this machine shows {get_accelerator().device_count()}; "
            "start fewer ranks a machine (slots in the hostfile, or --num_gpus)"
        )
    else:
        get_accelerator().set_device(local_rank())
    deepspeed.init_distributed(
        dist_backend=get_accelerator().communication_backend_name() if _on_gpu() else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timeout,
    )
    global _control, _timeout  # noqa: PLW0603
    _timeout = timeout
    _control = dist.new_group(backend="gloo", timeout=timeout)


def bound_waits() -> None:
    """Give every group that was made since ``init`` its timeout: DeepSpeed makes its own, which would wait longer."""
    for group in _world.pg_map:
        _set_pg_timeout(_timeout, group)


def control_group() -> dist.ProcessGroup:
    """All ranks on the hosts' network: what is said here waits for no device."""
    assert _control is not None, "init first"
    return _control


def _on_gpu() -> bool:
    return get_accelerator().device_name() != "cpu"


def _single_process_environment() -> None:
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    present = [name for name in names if name in os.environ]
    if len(present) == len(names):
        return
    if "RANK" in present or "WORLD_SIZE" in present:
        missing = ", ".join(name for name in names if name not in present)
        raise UserError(f"the environment sets {', '.join(present)} but not {missing}: start through the launcher")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def _quieten_deepspeed() -> None:
    """Its settings are in the run folder, and the deprecated calls it makes are not the user's to mend."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


def shut_down() -> None:
    """Leave the process group, so that the interpreter ends without waiting for anyone."""
    if dist.is_initialized():
        dist.destroy_process_group()
        # Gloo's threads drop the tensors of the last messages, for which they ask for the interpreter's lock. One that
        # waits for it when the interpreter ends aborts the process, a finished training's too; DeepSpeed holds on to
        # the groups, so that destroying them does not wait for their threads. Here the lock is free.
        time.sleep(_LAST_TENSORS)


def says_ranks_are_lost(error: BaseException) -> bool:
    """Whether this is how a backend tells that another rank has ended: gloo and NCCL raise one class for all."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    return rank() == 0


def device() -> torch.device:
    """Where this rank trains."""
    return torch.device(get_accelerator().current_device_name())


def barrier() -> None:
    dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """``tensor``, summed in place over all ranks."""
    dist.all_reduce(tensor)
    return tensor


def mean_logs(logs: dict[str, Tensor]) -> dict[str, float]:
    """Means over the ranks of scalars that every rank names alike: one message and one host sync."""
    names = sorted(logs)
    stacked = torch.stack([logs[name].detach().float() for name in names]).to(device())
    return dict(zip(names, (all_reduce_sum(stacked) / world_size()).tolist(), strict=True))


def broadcast(value: Any) -> Any:
    """Rank 0's ``value`` on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0, group=control_group())
    return box[0]


def on_main(work: Callable[[], Any], meet: Callable[[], None] | None = None) -> Any:
    """What ``work`` returns on rank 0, on every rank; a user's mistake there is raised on every rank. Collective.

    Args:
        meet: ``watchdog.meet``, for work that may take longer than a group waits.
    """
    outcome: tuple[Any, UserError | None] = (None, None)
    if is_main():
        try:
            outcome = (work(), None)
        except UserError as error:
            outcome = (None, error)
    if meet is not None:
        meet()
    value, mistake = broadcast(outcome)
    if mistake is not None:
        raise mistake
    return value


def gather(value: Any) -> list[Any]:
    """Every rank's ``value``, in the order of the ranks, on every rank."""
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=control_group())
    return values
