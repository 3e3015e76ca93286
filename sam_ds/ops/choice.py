"""Which implementation of an op runs: the recipe's or the environment's if they name one, else the fastest here."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Sequence

# SAM_DS_OPS="rel_pos_attention=sdpa,mask_loss=reference" overrules the recipe.
VARIABLE = "SAM_DS_OPS"
TRITON = importlib.util.find_spec("triton") is not None and importlib.util.find_spec("sam_ds_kernels") is not None


def forced(op: str, requested: str, implementations: Sequence[str]) -> str:
    """What the environment, else the caller, asks for; possibly "auto".

    Raises:
        ValueError: an implementation that the op does not have, or that is not installed.
    """
    named = _environment(os.environ.get(VARIABLE, "")).get(op)
    if (named or requested) not in implementations:
        where = f"{VARIABLE}: " if named else ""
        raise ValueError(f"{where}no implementation {named or requested!r} of {op}; there are {tuple(implementations)}")
    if (named or requested) == "triton" and not TRITON:
        raise ValueError(f"{op}: triton is not installed (pip install 'sam-ds[kernels]'); use auto")
    if named:
        _log(op, named, f" as {VARIABLE} says")
    return named or requested


def choose(op: str, implementation: str) -> str:
    """``implementation``, after a line in the log the first time."""
    _log(op, implementation, "")
    return implementation


@functools.cache
def _environment(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(",") if part.strip())
    return {name.strip(): value.strip() for name, _, value in pairs}


@functools.cache
def _log(op: str, implementation: str, why: str) -> None:
    logging.getLogger(__name__).info("%s: %s%s", op, implementation, why)
