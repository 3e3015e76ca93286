"""Which implementation of an op runs: the recipe's or the environment's if they name one, else the fastest here."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from sam_ds.config.errors import UserError, nearest

# SAM_DS_OPS="rel_pos_attention=sdpa,mask_loss=reference" overrules the recipe.
VARIABLE = "SAM_DS_OPS"
OPS = ("rel_pos_attention", "mask_loss", "rasterize")
TRITON = importlib.util.find_spec("triton") is not None and importlib.util.find_spec("sam_ds_kernels") is not None
T = TypeVar("T")
_REFUSED: set[str] = set()  # ops of which that was logged; the values in a reason can differ from call to call


def forced(op: str, requested: str, implementations: Sequence[str], device: torch.device) -> str:
    """What the environment, else the caller, asks for; possibly "auto".

    Raises:
        UserError: the op has no such implementation, or it cannot run here.
    """
    named = _environment(os.environ.get(VARIABLE, "")).get(op)
    wanted = named or requested
    where = f"{VARIABLE}: " if named else ""
    if wanted not in implementations:
        raise UserError(f"{where}no implementation {wanted!r} of {op}; there are {', '.join(implementations)}")
    if wanted == "triton" and not TRITON:
        raise UserError(f"{where}{op}=triton: triton is not installed (pip install 'sam-ds[kernels]'); use auto")
    if wanted == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError(f"{where}{op}=triton: its kernels run on CUDA, not on {device.type}; use auto")
    if named:
        _log(op, named, f", as {VARIABLE} says")
    return wanted


def by_kernels(op: str, wanted: str, device: torch.device, run: Callable[[], T]) -> T | None:
    """What ``run`` gives, which starts Triton kernels; None if others should compute.

    Others should if they are wanted, or if ``wanted`` is "auto" and this is no GPU, or the kernels refuse the inputs;
    the first time of each op the reason is logged.

    Raises:
        ValueError: ``wanted`` is "triton" and the kernels refuse the inputs.
    """
    if wanted != "triton" and not (wanted == "auto" and kernels_run_on(device)):
        return None
    from sam_ds_kernels.checks import Refused

    try:
        result = run()
    except Refused as refusal:
        if wanted == "triton":
            raise
        _log_refusal(op, str(refusal))
        return None
    if wanted == "auto":
        choose(op, "triton")
    return result


def kernels_run_on(device: torch.device) -> bool:
    return TRITON and device.type == "cuda"


def choose(op: str, implementation: str) -> str:
    """``implementation``, after a line in the log the first time."""
    _log(op, implementation, "")
    return implementation


@functools.cache
def _environment(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    named = {name.strip(): value.strip() for name, _, value in pairs}
    for name in named:
        if name not in OPS:
            raise UserError(f"{VARIABLE}: no op {name!r}: {nearest(name, OPS)}")
    return named


def _log_refusal(op: str, reason: str) -> None:
    if op not in _REFUSED:
        _REFUSED.add(op)
        logging.getLogger(__name__).warning("%s: not the kernels, which refuse: %s", op, reason)


@functools.cache
def _log(op: str, implementation: str, why: str) -> None:
    logging.getLogger(__name__).info("%s: %s%s", op, implementation, why)
