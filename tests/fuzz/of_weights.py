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
from sam_ds.config.schema import MaeConfig
from sam_ds.modeling.convert import Shapes, read_weights, save_weights, shapes_of
from sam_ds.modeling.handover import plan, resize_patches, resize_positions
from sam_ds.modeling.mae import Mae
from sam_ds.modeling.presets import SamConfig, VitConfig
from sam_ds.modeling.sam import Sam
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
        torch.save({"model": _WEIGHTS}, folder / "in.pth")
        names = ("w.pth", "w.safetensors", "code.pth", "old.pth", "in.pth")
        whole = {name: (folder / name).read_bytes() for name in names}
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


class Starts:
    """The names and shapes of a file that a model is to start from."""

    def __init__(self) -> None:
        with torch.device("meta"):
            small = SamConfig(8, 2, 2, (1,), 64, 8, 4, prompt_dim=8, decoder_heads=2, decoder_mlp_dim=8, iou_hidden=8)
            mae = Mae(VitConfig(8, 2, 2, 32, 8, decoder_dim=8, decoder_depth=1, decoder_heads=2), MaeConfig())
            self._own = [shapes_of(model.state_dict()) for model in (Sam(small), mae)]

    def draw(self, rng: Random) -> tuple[Shapes, Shapes]:
        """A model's, and a file's, which is nearly that of a model."""
        given = dict(rng.choice(self._own))
        for name in rng.sample(sorted(given), rng.choice((0, 0, 1, 2, 5))):
            shape = given.pop(name)
            if rng.random() < 0.7:
                sides = [rng.choice((side, side, 0, 1, 8, 17, 5 * side)) for side in shape]
                given[name] = tuple(sides[: rng.choice((len(sides), len(sides), rng.randrange(6)))])
        if rng.random() < 0.2:
            given = {name.replace("image_encoder.", rng.choice(("", "encoder."))): given[name] for name in given}
        return rng.choice(self._own), given

    def check(self, case: tuple[Shapes, Shapes]) -> bool:
        own, given = case
        try:
            handover = plan(own, given, "file.pth")
        except UserError as error:
            assert str(error).startswith("file.pth ") and "\n" not in str(error)
            return False
        assert {*handover.taken, *handover.resized, *handover.new} == own.keys()
        assert {*handover.taken.values(), *handover.resized.values(), *handover.left} == given.keys()
        assert all(own[mine] == given[name] for mine, name in handover.taken.items())
        for mine, name in handover.resized.items():
            resize = resize_patches if "patch_embed" in mine else resize_positions
            assert resize(torch.zeros(given[name]), own[mine]).shape == own[mine]
        return True
