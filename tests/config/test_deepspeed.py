"""The DeepSpeed config: every mistake is found before a process starts, and the shipped files are right."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sam_ds.config import deepspeed, hostfile
from sam_ds.config.deepspeed_keys import KEYS, OWNED_ELSEWHERE, ZERO
from sam_ds.config.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path.name for path in (ROOT / "ds_configs").glob("*.json"))
GOOD: dict[str, Any] = {
    "train_batch_size": 16,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8},
}


def test_what_is_read() -> None:
    config = deepspeed.parse(GOOD)
    assert (config.micro_batch, config.accumulation, config.zero_stage) == (4, 2, 2)
    assert (config.precision, config.clip, config.offload_optimizer) == ("bf16", 1.0, False)
    bare = deepspeed.parse({"train_micro_batch_size_per_gpu": 3})
    assert (bare.accumulation, bare.zero_stage, bare.precision, bare.clip) == (1, 0, "fp32", 0.0)


def test_the_batch_must_fit_the_world() -> None:
    config = deepspeed.parse(GOOD, "x.json")
    assert config.with_world(2).raw["train_batch_size"] == 16
    with pytest.raises(UserError) as caught:
        config.check_world(1)
    message = str(caught.value)
    for words in ("x.json", "train_batch_size 16", "1 rank = 8", "set train_batch_size 8"):
        assert words in message
    assert "gradient_accumulation_steps 4" in message
    assert "train_micro_batch_size_per_gpu 8" in message
    assert "start 2 ranks" in message
    with pytest.raises(UserError, match="3 ranks = 24; set train_batch_size 24, or start 2 ranks"):
        config.check_world(3)


def test_without_a_batch_size_every_world_fits() -> None:
    raw = {"train_micro_batch_size_per_gpu": 3}
    filled = deepspeed.parse(raw).with_world(5).raw
    assert filled == {
        "train_batch_size": 15,
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 1,
    }
    assert raw == {"train_micro_batch_size_per_gpu": 3}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"zero_optimizatoin": {"stage": 2}}, ["zero_optimizatoin", "did you mean zero_optimization"]),
        ({"zero_optimization": {"stgae": 2}}, ["zero_optimization.stgae", "did you mean stage"]),
        ({"zero_optimization": {"stage": 3, "offload_param": {"devise": "cpu"}}}, ["did you mean device"]),
        ({"bf16": {"enable": True}}, ["bf16.enable", "did you mean enabled"]),
        ({"optimizer": {"type": "Adam"}}, ["optimizer", "optim.lr"]),
        ({"scheduler": {}}, ["schedule.kind"]),
        ({"tensorboard": {"enabled": True}}, ["tracking.tensorboard"]),
        ({"wandb": {}}, ["tracking.mlflow"]),
        ({"csv_monitor": {}}, ["metrics.jsonl"]),
        ({"mlflow": {}}, ["tracking.mlflow"]),
        ({"activation_checkpointing": {}}, ["model.checkpointing"]),
        ({"torch_autocast": {"enabled": True}}, ["bf16 or fp16"]),
        ({"train_batch_size": "auto"}, ["train_batch_size", "auto"]),
        ({"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}}, ["reduce_bucket_size", "auto"]),
        ({"train_micro_batch_size_per_gpu": 0}, ["at least 1"]),
        ({"train_micro_batch_size_per_gpu": None}, ["must be a whole number, not null"]),
        ({"train_micro_batch_size_per_gpu": 1.5}, ["must be a whole number"]),
        ({"gradient_accumulation_steps": True}, ["must be a whole number, not true"]),
        ({"gradient_clipping": -1}, ["gradient_clipping"]),
        ({"zero_optimization": {"stage": 4}}, ["0, 1, 2 or 3"]),
        ({"zero_optimization": True}, ["must be an object"]),
        ({"fp16": {"enabled": True}}, ["bf16 and fp16"]),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, ["offload_param needs stage 3"]),
        ({"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}, ["needs stage 1, 2 or 3"]),
        (
            {"zero_optimization": {"stage": 0}, "data_types": {"grad_accum_dtype": "fp32"}},
            ["grad_accum_dtype fp32 with bf16", "stage 1, 2 or 3"],
        ),
        ({"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "gpu"}}}, ["none or cpu"]),
        (
            {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "nvme"}}},
            ["nvme cannot be saved"],
        ),
    ],
)
def test_a_mistake_is_one_clear_line(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        deepspeed.parse({**copy.deepcopy(GOOD), **change}, "x.json")
    message = str(caught.value)
    assert "\n" not in message
    for word in ["x.json", *words]:
        assert word in message


def test_the_micro_batch_must_be_there() -> None:
    with pytest.raises(UserError, match="train_micro_batch_size_per_gpu is missing"):
        deepspeed.parse({"train_batch_size": 4})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1,}', "not JSON"),
        ('{"train_batch_size": 1, "train_batch_size": 2}', "'train_batch_size' is there twice"),
        ("[]", "must be an object"),
        ('{"gradient_clipping": NaN}', "gradient_clipping must be a number"),
    ],
)
def test_a_broken_file_is_one_clear_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        deepspeed.load(path)
    assert str(path) in str(caught.value)


def test_where_a_config_is_found(tmp_path: Path) -> None:
    by_name = deepspeed.load("zero2_local")
    assert (
        by_name.raw
        == deepspeed.load("zero2_local.json").raw
        == deepspeed.load(ROOT / "ds_configs/zero2_local.json").raw
    )
    with pytest.raises(UserError, match=r"did you mean zero2_local\.json"):
        deepspeed.load("zero2_locl.json")
    with pytest.raises(UserError, match="no such DeepSpeed config"):
        deepspeed.load(tmp_path / "zero2_local.json")
    with pytest.raises(UserError, match="path of a JSON file"):
        deepspeed.load('{"train_batch_size": 1}')
    with pytest.raises(UserError, match="no such DeepSpeed config"):
        deepspeed.load(tmp_path)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_fits_its_ranks_and_writes_its_choices_out(name: str) -> None:
    config = deepspeed.load(name)
    ranks = re.search(r"x(\d+)", name)
    config.check_world(int(ranks[1]) if ranks else 2)
    assert config.zero_stage == int(name[4])
    assert config.offload_optimizer == ("offload" in name)
    assert config.precision == ("fp32" if "fp32" in name else "bf16")
    assert config.raw["data_types"]["grad_accum_dtype"] == "fp32"
    assert config.raw["zero_optimization"]["overlap_comm"] is False
    batch = re.search(r"batch(\d+)", name)
    if batch:
        assert config.raw["train_batch_size"] == int(batch[1])


@pytest.mark.parametrize("name", ["zero2_a100x128.json", "zero2_a100x256.json"])
def test_stages_two_and_three_of_a_size_train_the_same_batch(name: str) -> None:
    two, three = deepspeed.load(name), deepspeed.load(name.replace("zero2", "zero3"))
    assert (two.micro_batch, two.accumulation, two.clip) == (three.micro_batch, three.accumulation, three.clip)


def test_the_tables_name_keys_that_deepspeed_knows() -> None:
    """Held against DeepSpeed's own models, so that a new version cannot rename a key under us."""
    fp = pytest.importorskip("deepspeed.runtime.precision_config")
    zero = pytest.importorskip("deepspeed.runtime.zero.config").DeepSpeedZeroConfig
    offload = pytest.importorskip("deepspeed.runtime.zero.offload_config")

    def names(model: Any) -> set[str]:
        return {field.alias or name for name, field in model.model_fields.items()}

    assert set(ZERO) <= names(zero)
    assert set(ZERO["offload_param"]) <= names(offload.DeepSpeedZeroOffloadParamConfig)
    assert set(ZERO["offload_optimizer"]) <= names(offload.DeepSpeedZeroOffloadOptimizerConfig)
    assert set(KEYS["bf16"]) <= names(fp.DeepSpeedBF16Config)
    assert set(KEYS["fp16"]) <= names(fp.DeepSpeedFP16Config)
    assert not set(KEYS) & set(OWNED_ELSEWHERE)


@pytest.mark.parametrize(
    ("name", "ranks"), [("local", 2), ("a100x128", 128), ("a100x256", 256), ("h100x64", 64), ("h100x128", 128)]
)
def test_a_shipped_hostfile_starts_its_ranks(name: str, ranks: int) -> None:
    assert hostfile.world_size(hostfile.load(ROOT / "hostfiles" / f"{name}.hostfile")) == ranks


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a slots=8\nb 8\n", "line 2: 'b 8' must be written as"),
        ("a slots=8\n\na slots=8\n", "line 3: host a is there twice"),
        ("a slots=0\n", "line 1"),
        ("# nothing\n", "no host in it"),
    ],
)
def test_a_broken_hostfile_is_one_clear_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(words)):
        hostfile.load(path)


def test_a_hostfile_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the hostfile"):
        hostfile.load(tmp_path / "hosts")


def test_configs_hold_no_key_twice() -> None:
    for name in SHIPPED:
        text = (ROOT / "ds_configs" / name).read_text()
        assert json.dumps(json.loads(text), indent=2) + "\n" == text
