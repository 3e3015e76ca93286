"""Reading and writing weights in the released SAM's own format: a flat state dict in .pth or .safetensors."""

from __future__ import annotations

import logging
import os
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam_ds.config.errors import UserError

_logger = logging.getLogger(__name__)

SUFFIXES = (".pth", ".safetensors")

Shapes = Mapping[str, tuple[int, ...]]  # of weights, by name

# What torch says of a pickle that asks for more than tensors; 149 begins every pickle of protocol 4 or 5.
_NEEDS_CODE = re.compile(
    r"(unsupported GLOBAL|Unsupported global: GLOBAL) \S+|Can only (create new object|build Tensor)|"
    r"Trying to call reduce|Unsupported operand 149\b"
)
# What comes of reading a file that is damaged or none of ours.
_UNREADABLE = (
    *(pickle.UnpicklingError, struct.error, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError),
    *(AttributeError, ArithmeticError, AssertionError, ImportError, MemoryError),
)


class _Trust:
    """Whether the user of this process said that .pth files may run code. Never a setting: recipes are handed on."""

    given = False


def trust_pickles() -> None:
    """Let ``read_weights`` unpickle from now on what it would refuse."""
    _Trust.given = True


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a flat state dict onto the CPU. Nothing in the file is executed, unless ``trust_pickles`` was called.

    It may also be what a file has under "model": so MAE's and SAM 2's releases are wrapped.

    Raises:
        UserError: the file is missing, unreadable, of another format, not a flat state dict, or one that cannot be
            read without running code from it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # here: training without files needs no safetensors

    path = _checked_suffix(path)
    if not path.is_file():
        raise UserError(f"there are no weights at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = _unpickled(path)
        if isinstance(weights, dict) and isinstance(weights.get("model"), dict):
            weights = weights["model"]
    except UserError:
        raise
    except (*_UNREADABLE, SafetensorError) as error:
        raise UserError(f"{path} is not a readable {path.suffix} file of weights ({_first_line(error)})") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path} does not hold a flat state dict of tensors: export the model first (sam-ds export)")
    return weights


def _unpickled(path: Path) -> Any:
    """What torch.save wrote."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of odd pickles, which are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = _NEEDS_CODE.search(str(error))
        if not wanted:
            raise
        if not _Trust.given:
            raise UserError(
                f"{path} is refused: it is no plain file of weights, and loading it would run code from it "
                f"({wanted[0]}); take a .safetensors, or, if you trust who made it, give --trust-checkpoint"
            ) from error
    _logger.warning("TRUSTED: %s is unpickled, which runs whatever its maker put into it (--trust-checkpoint)", path)
    return torch.load(path, map_location="cpu", weights_only=False)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load weights into a model; every name and shape must agree.

    Raises:
        UserError: as ``read_weights``, or the file belongs to another model.
    """
    weights = read_weights(path)
    check_same(shapes_of(model.state_dict()), shapes_of(weights), path)
    model.load_state_dict(weights)


def shapes_of(weights: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def check_same(own: Shapes, given: Shapes, path: str | Path) -> None:
    """Raise UserError unless a file has a model's weights, all of them and no others."""
    missing = sorted(own.keys() - given.keys())
    extra = sorted(given.keys() - own.keys())
    reshaped = sorted(name for name in own.keys() & given.keys() if own[name] != given[name])
    if missing or extra or reshaped:
        raise UserError(
            f"{path} holds the weights of another model: {_difference(own, given, missing, extra, reshaped)}"
        )


def save_weights(state_dict: dict[str, Tensor], path: str | Path) -> None:
    """Write a flat state dict to .pth or .safetensors, whole or not at all.

    Raises:
        UserError: another suffix, or the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = _checked_suffix(path)
    # One contiguous copy each: safetensors refuses shared memory, and a view would save its whole storage.
    weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state_dict.items()}
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file(weights, partial)
        else:
            torch.save(weights, partial)
        os.replace(partial, path)
    except (OSError, SafetensorError, RuntimeError) as error:  # of Python, of safetensors, of torch.save
        raise UserError(f"{path} cannot be written ({_first_line(error)})") from error


def _difference(own: Shapes, given: Shapes, missing: list[str], extra: list[str], reshaped: list[str]) -> str:
    """One example of each kind of difference is enough to see which model a file belongs to."""
    parts = []
    if missing:
        parts.append(f"{len(missing)} names are missing (such as {missing[0]})")
    if extra:
        parts.append(f"{len(extra)} are unknown (such as {extra[0]})")
    if reshaped:
        name = reshaped[0]
        shapes = f"{list(given[name])} instead of {list(own[name])}"
        parts.append(f"{len(reshaped)} have another shape (such as {name}: {shapes})")
    return ", ".join(parts) + "; choose the model.preset it was made with"


def _checked_suffix(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: weights are read and written as {' or '.join(SUFFIXES)}")
    return path


def _first_line(error: Exception) -> str:
    if isinstance(error, LookupError):  # of torch's unpickler, says nothing to a user
        return "its pickle is damaged"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
