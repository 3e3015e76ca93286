"""Which implementation of an op runs: the recipe's or the environment's if they name one, else the fastest here."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Sequence

import torch

from sam_ds.config.errors import UserError, nearest

# SAM_DS_OPS="rel_pos_attention=sdpa,mask_loss=reference" overrules the recipe.
VARIABLE = "SAM_DS_OPS"
OPS = ("rel_pos_attention", "mask_loss", "rasterize")
TRITON = importlib.util.find_spec("triton") is not None and importlib.util.find_spec("sam_ds_kernels") is not None


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


@functools.cache
def _log(op: str, implementation: str, why: str) -> None:
    logging.getLogger(__name__).info("%s: %s%s", op, implementation, why)
