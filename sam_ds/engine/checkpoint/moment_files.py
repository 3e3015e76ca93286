"""AdamW's moments in files, one a rank: written by any world, read by any other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sam_ds.engine.moments import Part


def path_of(folder: Path, rank: int) -> Path:
    return folder / f"moments_{rank:05d}.safetensors"


def write(path: Path, held: list[tuple[Part, dict[str, Tensor]]]) -> None:
    """Parts and their moments, under "exp_avg/name"; where each begins stands in the file's metadata."""
    tensors = {f"{key}/{part.name}": moment for part, moments in held for key, moment in moments.items()}
    save_file(tensors, path, metadata={"starts": json.dumps({part.name: part.start for part, _ in held})})


class Reader:
    """The moments of all files of a checkpoint, as if they were one."""

    def __init__(self, files: list[Any]) -> None:
        self._pieces: dict[str, list[tuple[int, Any]]] = {}
        for file in files:
            for name, start in json.loads(file.metadata()["starts"]).items():
                self._pieces.setdefault(name, []).append((start, file))

    def read(self, key: str, name: str, start: int, numel: int) -> Tensor:
        """The elements ``start`` to ``start + numel`` of a parameter's moment, float32 on the host."""
        out = torch.empty(numel)
        missing = numel
        for first, file in self._pieces.get(name, []):
            piece = file.get_slice(f"{key}/{name}")
            low, high = max(start, first), min(start + numel, first + piece.get_shape()[0])
            if low < high:
                out[low - start : high - start] = piece[low - first : high - first]
                missing -= high - low
        assert missing == 0, f"{missing} of {numel} elements of {key} of {name} are in no file"
        return out


@contextmanager
def opened(folder: Path) -> Iterator[Reader]:
    with ExitStack() as stack:
        paths = sorted(folder.glob("moments_*.safetensors"))
        yield Reader([stack.enter_context(safe_open(path, framework="pt")) for path in paths])
