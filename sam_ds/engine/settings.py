"""What DeepSpeed is told, and what it makes of that."""

from __future__ import annotations

import copy
from typing import Any

from deepspeed import DeepSpeedEngine

from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.engine import distributed


def for_deepspeed(config: DeepSpeedConfig) -> dict[str, Any]:
    """The user's settings, and those that are ours to choose."""
    settings = copy.deepcopy(config.raw)
    settings["zero_allow_untested_optimizer"] = True  # torch's AdamW is not on its list
    settings["zero_force_ds_cpu_optimizer"] = False  # the recipe chooses the implementation
    settings.setdefault("steps_per_print", 1_000_000_000)  # the tracker reports
    return settings


def effective(ds: DeepSpeedEngine, config: DeepSpeedConfig, groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Every setting that DeepSpeed runs with, its defaults filled in, and the optimizer's groups."""
    return {
        "deepspeed": for_deepspeed(config),
        # DeepSpeed's defaults drift between versions and it shows them nowhere else.
        "zero_optimization": ds._config.zero_config.model_dump(mode="json")
        if ds.zero_optimization_stage()
        else {"stage": 0},
        "world_size": distributed.world_size(),
        "precision": config.precision,
        "optimizer": type(ds.basic_optimizer).__name__,
        "optimizer_wrapper": type(ds.optimizer).__name__,
        "groups": [
            {key: group[key] for key in ("lr", "lr_scale", "weight_decay")} | {"parameters": len(group["names"])}
            for group in groups
        ],
    }
