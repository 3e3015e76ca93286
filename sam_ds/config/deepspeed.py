"""The DeepSpeed config: read, checked key by key, and its batch arithmetic, all without importing DeepSpeed."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam_ds.config.deepspeed_keys import KEYS, OWNED_ELSEWHERE
from sam_ds.config.errors import UserError, nearest

CONFIG_DIR = Path(__file__).resolve().parents[2] / "ds_configs"
_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}


@dataclass(frozen=True)
class DeepSpeedConfig:
    """A checked DeepSpeed config. ``raw`` is what DeepSpeed is given; the rest is read from it."""

    source: str  # where it came from, for messages
    raw: dict[str, Any]
    micro_batch: int  # pictures a rank takes through one forward
    accumulation: int  # forwards and backwards an optimizer step
    zero_stage: int
    precision: str  # fp32 | bf16 | fp16
    clip: float  # largest gradient norm; 0: none
    offload_optimizer: bool  # optimizer state and step on the host

    def check_world(self, world: int) -> None:
        """Raise UserError unless train_batch_size = micro batch × accumulation × ``world`` ranks."""
        batch = self.raw.get("train_batch_size", self.global_batch(world))
        if batch == self.global_batch(world):
            return
        ranks = f"{world} rank{'s' * (world > 1)}"
        raise UserError(
            f"{self.source}: train_batch_size {batch} is not micro batch {self.micro_batch} × accumulation "
            f"{self.accumulation} × {ranks} = {self.global_batch(world)}; {self._mend(batch, world)}"
        )

    def with_world(self, world: int) -> DeepSpeedConfig:
        """The config checked against ``world`` ranks, with every number of the batch written out in ``raw``."""
        self.check_world(world)
        raw = copy.deepcopy(self.raw)
        raw["train_batch_size"] = self.global_batch(world)
        raw["train_micro_batch_size_per_gpu"] = self.micro_batch
        raw["gradient_accumulation_steps"] = self.accumulation
        return dataclasses.replace(self, raw=raw)

    def global_batch(self, world: int) -> int:
        """Pictures an optimizer step on ``world`` ranks."""
        return self.micro_batch * self.accumulation * world

    def _mend(self, batch: int, world: int) -> str:
        """The changes that would each make the numbers fit."""
        ways = [f"train_batch_size {self.global_batch(world)}"]
        if batch % (self.micro_batch * world) == 0:
            ways.append(f"gradient_accumulation_steps {batch // (self.micro_batch * world)}")
        if batch % (self.accumulation * world) == 0:
            ways.append(f"train_micro_batch_size_per_gpu {batch // (self.accumulation * world)}")
        text = "set " + " or ".join(ways)
        if batch % (self.micro_batch * self.accumulation) == 0:
            text += f", or start {batch // (self.micro_batch * self.accumulation)} ranks"
        return text


def load(path: str | Path) -> DeepSpeedConfig:
    """Read and check a config: a path, or the bare name of a file in ``ds_configs/``.

    Raises:
        UserError: no such file, not JSON, an unknown or misspelt key, a wrong type, a key that belongs to the
            recipe, ``"auto"``, or settings that contradict each other.
    """
    file = _find(str(path))
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the DeepSpeed config ({error})") from None
    try:
        raw = json.loads(text, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {error}") from None
    return parse(raw, str(path))


def parse(raw: Any, source: str = "DeepSpeed config") -> DeepSpeedConfig:
    """Check the contents of a config; ``source`` is named in messages. Raises UserError as ``load`` does."""
    _check(raw, KEYS, source, "")
    micro = _positive(raw, "train_micro_batch_size_per_gpu", source, None)
    accumulation = _positive(raw, "gradient_accumulation_steps", source, 1)
    _positive(raw, "train_batch_size", source, 1)
    clip = float(raw.get("gradient_clipping", 0.0))
    if clip < 0:
        raise UserError(f"{source}: gradient_clipping {clip:g}: give a norm above 0, or 0 for none")
    zero = raw.get("zero_optimization", {})
    _check_zero(zero, source)
    precision, sums = _precision(raw, source), raw.get("data_types", {}).get("grad_accum_dtype")
    if not zero.get("stage", 0) and sums not in (None, precision):
        raise UserError(
            f"{source}: data_types.grad_accum_dtype {sums} with {precision} needs zero_optimization.stage 1, 2 or 3"
        )
    return DeepSpeedConfig(
        source=source,
        raw=copy.deepcopy(raw),
        micro_batch=micro,
        accumulation=accumulation,
        zero_stage=int(zero.get("stage", 0)),
        precision=precision,
        clip=clip,
        offload_optimizer=_device(zero, "offload_optimizer") != "none",
    )


def _find(name: str) -> Path:
    if name.lstrip().startswith("{"):
        raise UserError(
            "--deepspeed_config takes the path of a JSON file, not JSON itself (its quotes get lost on the way)"
        )
    path = Path(name)
    if path.is_file():
        return path
    if path.name and path.parent == Path():
        inside = CONFIG_DIR / (path.name if path.suffix == ".json" else f"{path.name}.json")
        if inside.is_file():
            return inside
    known = [file.name for file in sorted(CONFIG_DIR.glob("*.json"))]
    hint = f"; {nearest(path.name, known)}" if known else ""
    raise UserError(f"{name}: no such DeepSpeed config{hint}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice; keep one")
    return result


def _check(value: Any, kind: Any, source: str, path: str) -> None:
    """Raise UserError unless ``value`` is of ``kind``: a type, a choice of texts, or a table of keys for an object."""
    if value == "auto":
        raise UserError(f'{source}: {path} is "auto", which only other trainers fill in; write the value')
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            raise UserError(f"{source}: {path or 'the config'} must be an object {{…}}, not {json.dumps(value)}")
        for key, item in value.items():
            inner = f"{path}.{key}" if path else key
            if not path and key in OWNED_ELSEWHERE:
                raise UserError(f"{source}: {key} has no place here: {OWNED_ELSEWHERE[key]}")
            if key not in kind:
                raise UserError(f"{source}: unknown key {inner!r}; {nearest(key, kind)}")
            _check(item, kind[key], source, inner)
        return
    if isinstance(kind, tuple):
        if value not in kind:
            raise UserError(f"{source}: {path} must be one of {', '.join(kind)}, not {json.dumps(value)}")
        return
    if kind in (int, float) and type(value) in (int, float) and _is_number(value, kind, source, path):
        return
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise UserError(f"{source}: {path} must be {_TYPE_NAMES[kind]}, not {json.dumps(value)}")


def _is_number(value: float, kind: type, source: str, path: str) -> bool:
    """Whether a number is as good as one of ``kind``. Raises UserError if it is out of all range."""
    if value < 0:
        raise UserError(f"{source}: {path} must not be negative: {json.dumps(value)}")
    if int in (kind, type(value)) and 2**63 <= value < math.inf:
        raise UserError(f"{source}: {path} must be below 2^63, not {json.dumps(value)}")
    if kind is float:
        return type(value) is int
    return isinstance(value, float) and value.is_integer()  # large counts are often written as 5e8


def _positive(raw: dict[str, Any], key: str, source: str, default: int | None) -> int:
    value = raw.get(key, default)
    if value is None:
        raise UserError(f"{source}: {key} is missing: write how many pictures a rank takes at once")
    if value < 1:
        raise UserError(f"{source}: {key} must be at least 1, not {value}")
    return int(value)


def _precision(raw: dict[str, Any], source: str) -> str:
    enabled = [name for name in ("bf16", "fp16") if raw.get(name, {}).get("enabled", False)]
    if len(enabled) == 2:
        raise UserError(f"{source}: bf16 and fp16 are both enabled; keep one")
    return enabled[0] if enabled else "fp32"


def _check_zero(zero: dict[str, Any], source: str) -> None:
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UserError(f"{source}: zero_optimization.stage {stage}: must be 0, 1, 2 or 3")
    for key in ("offload_optimizer", "offload_param"):
        device = _device(zero, key)
        if device == "nvme":  # DeepSpeed leaves no tensors to save and to measure between steps
            raise UserError(
                f"{source}: zero_optimization.{key}.device nvme cannot be saved to checkpoints here: use cpu"
            )
        if device not in ("none", "cpu"):
            raise UserError(f"{source}: zero_optimization.{key}.device {device!r}: must be none or cpu")
    if _device(zero, "offload_param") != "none" and stage != 3:
        raise UserError(f"{source}: zero_optimization.offload_param needs stage 3, not {stage}")
    if _device(zero, "offload_optimizer") != "none" and stage == 0:
        raise UserError(f"{source}: zero_optimization.offload_optimizer needs stage 1, 2 or 3, not 0")


def _device(zero: dict[str, Any], key: str) -> str:
    return str(zero.get(key, {}).get("device", "none"))
