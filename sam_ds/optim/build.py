"""Which AdamW implementation to use: a pure choice. ``engine.optimizers`` knows the libraries and builds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sam_ds.config.errors import UserError, nearest

IMPLEMENTATIONS = ("torch", "deepspeed_cpu", "deepspeed_fused", "apex_fused")


@dataclass(frozen=True)
class Choice:
    implementation: str  # one of IMPLEMENTATIONS
    warning: str = ""  # what the user should know about it, if anything


def choose(wanted: str, device_type: str, offload: bool, why_not: Callable[[str], str]) -> Choice:
    """The AdamW to use.

    Args:
        wanted: ``optim.implementation``, one of IMPLEMENTATIONS or "auto". Auto takes DeepSpeed's CPU Adam where the
            optimizer state is offloaded to the host, and else torch's own fused kernel, which needs no build.
        device_type: "cpu" or "cuda", where the model trains.
        offload: whether the DeepSpeed config keeps the optimizer state on the host.
        why_not: says of an implementation why it cannot be used here, "" if it can.

    Raises:
        UserError: an unknown name, or an implementation asked for by name that cannot be used.
    """
    if wanted == "auto":
        return _auto(offload, why_not)
    if wanted not in IMPLEMENTATIONS:
        raise UserError(f"optim.implementation={wanted!r} is not known; {nearest(wanted, ('auto', *IMPLEMENTATIONS))}")
    host_only = device_type == "cpu" or offload
    if wanted == "deepspeed_cpu" and not host_only:
        raise UserError(
            "optim.implementation=deepspeed_cpu steps on the host: add zero_optimization.offload_optimizer to the "
            "DeepSpeed config, or choose auto"
        )
    if wanted == "apex_fused" and host_only:
        raise UserError("optim.implementation=apex_fused needs the optimizer state on a GPU; choose auto")
    if wanted == "deepspeed_fused" and offload and device_type != "cpu":
        raise UserError("optim.implementation=deepspeed_fused does not step on the host; choose deepspeed_cpu or auto")
    reason = why_not(wanted)
    if reason:
        raise UserError(f"optim.implementation={wanted} cannot be used here: {reason}; choose auto or torch")
    slow = "offloaded optimizer state is stepped by torch: deepspeed_cpu is faster"
    return Choice(wanted, slow if offload and wanted == "torch" else "")


def _auto(offload: bool, why_not: Callable[[str], str]) -> Choice:
    if not offload:
        return Choice("torch")
    reason = why_not("deepspeed_cpu")
    if not reason:
        return Choice("deepspeed_cpu")
    return Choice("torch", f"DeepSpeed's CPU Adam cannot be used ({reason}); torch's steps the offloaded state, slower")
