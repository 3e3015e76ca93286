"""Settings as users write them, and a checkpoint's manifest."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from pathlib import Path
from random import Random

from sam_ds.config import deepspeed, hostfile, overrides, recipe_file, tree
from sam_ds.config.errors import UserError
from sam_ds.config.schema import Recipe
from sam_ds.recipes import RECIPES
from sam_ds.storage import checkpoints
from sam_ds.training.state import RunFolder
from tests.fuzz.mutate import json_case, other_bytes

_LONGEST_TEXT = 100_000  # characters of a message that quotes what was wrong


def refused(error: UserError) -> bool:
    assert str(error).strip() and len(str(error)) < _LONGEST_TEXT
    return False


class DeepSpeed:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "config.json"
        self._configs = [json.loads(path.read_text()) for path in sorted(deepspeed.CONFIG_DIR.glob("*.json"))]

    def draw(self, rng: Random) -> bytes:
        return json_case(rng, self._configs)

    def check(self, case: bytes) -> bool:
        self._path.write_bytes(case)
        try:
            config = deepspeed.load(self._path)
            ranks = config.raw.get("train_batch_size", 1) // config.global_batch(1)
            config = config.with_world(max(1, int(ranks)))
        except UserError as error:
            return refused(error)
        assert type(config.micro_batch) is type(config.accumulation) is type(config.zero_stage) is int
        assert config.micro_batch > 0 and config.accumulation > 0 and config.zero_stage in (0, 1, 2, 3)
        assert config.precision in ("fp32", "bf16", "fp16") and math.isfinite(config.clip) and config.clip >= 0
        again = deepspeed.parse(json.loads(json.dumps(config.raw)), config.source)
        assert again == config
        return True


class Hosts:
    _WHOLE = b"# sixteen machines\nnode-001 slots=8\nnode-002 slots=8  # comment\n\n10.0.0.3\tslots=16\n"
    _LINES = (
        b"a slots=1",
        b"a slots=0",
        b"b slots=-1",
        b"c slots=99999999999999999999",
        b"d  slots=" + b"9" * 5000,
        "e slots=٣".encode(),
        b"f slots=8 x",
        b"\0 slots=1",
        b"\xff slots=1",
        b"-oProxyCommand=x slots=1",
        b"slots=8",
    )

    def __init__(self, folder: Path) -> None:
        self._path = folder / "hostfile"

    def draw(self, rng: Random) -> bytes:
        lines = self._WHOLE.split(b"\n")
        if rng.random() < 0.5:
            lines.insert(rng.randrange(len(lines)), rng.choice(self._LINES))
        content = b"\n".join(lines)
        return other_bytes(rng, content) if rng.random() < 0.7 else content

    def check(self, case: bytes) -> bool:
        self._path.write_bytes(case)
        try:
            hosts = hostfile.load(self._path)
        except UserError as error:
            return refused(error)
        assert hosts and len({host.name for host in hosts}) == len(hosts)
        assert all(host.name.split() == [host.name] and 1 <= host.slots < 10**6 for host in hosts)
        assert all(host.name.isprintable() and not host.name.startswith("-") for host in hosts)  # ssh takes an option
        assert hostfile.world_size(hosts) == sum(host.slots for host in hosts)
        return True


_NAMES = [name for name, _ in tree.leaves(Recipe)]
_VALUES = (
    "", "1", "0", "-1", "0.5", "4e-4", "9e4", "1e400", "-inf", "nan", "true", "false", "True", "1,3,5", "1,", ",", "()",
    "[1,2]", "0.1,2.0", "1e308", "9" * 400, "9" * 5000, "1_000", "٣", "\0", "\ud800", "a.b=c", "x" * 10000, "0x10",
    "none", "cosine", "0.5,0.5", "[[1]]", " 3 ",
)  # fmt: skip


@functools.cache
def _recipes() -> list[Recipe]:
    return [build() for build in RECIPES.values()]


def draw_settings(rng: Random) -> tuple[Recipe, list[str]]:
    settings = []
    for _ in range(rng.randrange(1, 4)):
        name, value = _NAMES[rng.randrange(len(_NAMES))], rng.choice(_VALUES)
        way = rng.randrange(8)
        if way == 0:
            name = name.rpartition(".")[way % 3]
        elif way == 1:
            name = other_bytes(rng, name.encode()).decode("utf-8", "surrogateescape")
        elif way == 2:
            value = other_bytes(rng, value.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogateescape")
        elif way == 3:
            value = repr(rng.uniform(-2, 2)) if rng.random() < 0.5 else str(rng.randrange(-10, 1000))
        settings.append(f"{name}={value}" if rng.random() < 0.97 else name)
    return _recipes()[rng.randrange(len(_recipes()))], settings


def check_settings(case: tuple[Recipe, list[str]]) -> bool:
    recipe, settings = case
    try:
        changed = overrides.apply(recipe, settings)
    except UserError as error:
        return refused(error)
    _check_recipe(changed)
    return True


def _check_recipe(recipe: Recipe) -> None:
    """It can be written and read again, and every number is one that a machine can count with."""
    text = json.dumps(recipe_file.to_dict(recipe))
    assert recipe_file.from_dict(json.loads(text)) == recipe
    for name, value in recipe_file.flatten(recipe).items():
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, (int, float)):
                assert (math.isfinite(item) and abs(item) < 2**63) or isinstance(item, float), name


class RecipeFile:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "recipe.json"
        self._recipes = [recipe_file.to_dict(recipe) for recipe in _recipes()]

    def draw(self, rng: Random) -> bytes:
        return json_case(rng, self._recipes)

    def check(self, case: bytes) -> bool:
        self._path.write_bytes(case)
        try:
            recipe = recipe_file.load(self._path)
        except UserError as error:
            return refused(error)
        _check_recipe(recipe)
        return True


class Classes:
    """What a run folder says that its classes are called."""

    def __init__(self, folder: Path) -> None:
        self._folder = RunFolder(folder)

    def draw(self, rng: Random) -> bytes:
        return json_case(rng, [["n01440764", "n01443537"], ["cat", "dog", "größer"]])

    def check(self, case: bytes) -> bool:
        (self._folder.path / "classes.json").write_bytes(case)
        try:
            found = self._folder.classes()
        except UserError as error:
            return refused(error)
        assert len({str(name) for name in found}) == len(found)
        return True


class Manifests:
    """Half of them with the hash of what they say, as a forger would."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "weights.safetensors").write_bytes(b"weights")
        files = checkpoints.record(folder, ["weights.safetensors"])
        recipe = recipe_file.to_dict(_recipes()[0])
        shapes = {"a.weight": [3, 4], "a.bias": [3]}
        manifest = checkpoints.Manifest(7, 2, 2, "bf16", False, recipe, shapes, 0.5, {"pictures": 9}, {}, files)
        checkpoints.write_manifest(folder, manifest)
        self._manifest = json.loads((folder / checkpoints.MANIFEST).read_text())

    def draw(self, rng: Random) -> bytes:
        case = json_case(rng, [self._manifest])
        if rng.random() < 0.5:
            try:
                values = json.loads(case)
                others = {name: value for name, value in values.items() if name != "sha256"}
                values["sha256"] = hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
                return json.dumps(values).encode()
            except (ValueError, AttributeError, TypeError, RecursionError):
                pass
        return case

    def check(self, case: bytes) -> bool:
        (self._folder / checkpoints.MANIFEST).write_bytes(case)
        try:
            manifest = checkpoints.read_manifest(self._folder)
        except UserError as error:
            return refused(error)
        assert manifest.sha256 == json.loads(case)["sha256"]
        return True
