"""Files of weights, which people hand on: nothing in them may run."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path
from random import Random

import torch

from sam_ds.config.errors import UserError
from sam_ds.modeling.convert import read_weights, save_weights
from tests.fuzz.mutate import json_case, other_bytes

_WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(3, dtype=torch.bfloat16)}


class _Program:
    def __init__(self, mark: Path) -> None:
        self._mark = str(mark)

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self._mark,)


class Weights:
    def __init__(self, folder: Path) -> None:
        self._folder, self._ran = folder, folder / "ran"
        for suffix in (".pth", ".safetensors"):
            save_weights(_WEIGHTS, folder / f"w{suffix}")
        torch.save({**_WEIGHTS, "program": _Program(self._ran)}, folder / "code.pth")
        torch.save(_WEIGHTS, folder / "old.pth", _use_new_zipfile_serialization=False)
        whole = {name: (folder / name).read_bytes() for name in ("w.pth", "w.safetensors", "code.pth", "old.pth")}
        self._cases = [(Path(name).suffix, content) for name, content in whole.items()]
        self._cases += [(".pth", pickle.dumps(_Program(self._ran), protocol)) for protocol in (2, 4)]

    def draw(self, rng: Random) -> tuple[str, bytes]:
        suffix, content = self._cases[rng.randrange(len(self._cases))]
        if suffix == ".safetensors" and rng.random() < 0.5:  # a header of JSON, its length before it, and the numbers
            (length,) = struct.unpack("<Q", content[:8])
            header = json_case(rng, [json.loads(content[8 : 8 + length])])
            return suffix, struct.pack("<Q", len(header)) + header + content[8 + length :]
        return suffix, other_bytes(rng, content) if rng.random() < 0.9 else content

    def check(self, case: tuple[str, bytes]) -> bool:
        path = self._folder / f"case{case[0]}"
        path.write_bytes(case[1])
        try:
            weights = read_weights(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            assert not self._ran.exists()
            return False
        assert all(isinstance(value, torch.Tensor) and value.numel() < 1 << 20 for value in weights.values())
        assert not self._ran.exists()
        return True
