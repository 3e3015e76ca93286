"""What the ranks run: a step of SAM with Triton ops and with reference ops."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from sam_ds.config.schema import CurriculumConfig
from sam_ds.engine import distributed
from sam_ds.engine.engine import Engine
from sam_ds.engine.weights import gathered_gradient
from sam_ds.modeling.presets import PRESETS
from sam_ds.ops import choice
from sam_ds.tasks.segment_images import SegmentImages
from sam_ds.training import tasks
from tests.engine import toy
from tests.training.cases import tiny

# 5 x 5 tokens, so that windows of 4 reach beyond: the interpreter takes its time.
PRESETS["kernels"] = dataclasses.replace(PRESETS["tiny"], image_size=40, window_size=4)
OPS = ("rel_pos_attention", "mask_loss", "rasterize")


def same_step(folder: Path, stage: int) -> Any:
    """The losses of both, and the largest relative difference of a gradient."""
    losses, gradients = zip(*(_step(name, stage) for name in ("reference", "triton")), strict=True)
    whole = torch.stack([g.norm() for g in gradients[0].values()]).norm()
    difference = {
        name: float((gradients[1][name] - g).norm() / g.norm().clamp(min=1e-4 * whole))
        for name, g in gradients[0].items()
    }
    return {"losses": losses, "difference": difference}


def _step(implementation: str, stage: int) -> tuple[float, dict[str, torch.Tensor]]:
    os.environ[choice.VARIABLE] = ",".join(f"{op}={implementation}" for op in OPS)
    recipe = tiny()
    prompts = dataclasses.replace(recipe.prompts, correction_rounds=1, extra_rounds=0)
    model = dataclasses.replace(recipe.model, preset="kernels")
    recipe = dataclasses.replace(recipe, model=model, prompts=prompts, curriculum=CurriculumConfig())
    batch = tasks.kit("segment_images").example(recipe, distributed.rank())
    engine = Engine(SegmentImages, recipe, toy.config(stage, accumulation=1))
    logs, _ = engine.accumulate_gradients([batch], 0)
    gradients = {}
    for name, parameter in engine.task.named_parameters():
        gradient = gathered_gradient(parameter)
        if gradient is not None:
            gradients[name] = gradient.float().clone()
    total = distributed.mean_logs(logs)["loss/total"]
    engine.close()
    return total, gradients
