"""The preflight: do the gradients that DeepSpeed would step with equal those of plain autograd?

ZeRO, accumulation, recomputation and their versions have each been seen to change gradients without a word.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.config.schema import Recipe
from sam_ds.engine import distributed
from sam_ds.engine.engine import Engine
from sam_ds.engine.weights import cast_parameters, gathered_gradient

# Sums in another order differ by some tens of roundings: 6e-8 each in fp32, 4e-3 in bf16, 5e-4 in fp16.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 2e-2}


@dataclass(frozen=True)
class GradientReport:
    errors: dict[str, float]  # by part of the model: the largest |ours - plain| / |plain| of a parameter's gradient
    missing: list[str]  # parameters that plain autograd gives no gradient: ZeRO-3 would re-apply an old one
    tolerance: float

    @property
    def passed(self) -> bool:
        return not self.missing and all(error <= self.tolerance for error in self.errors.values())

    def __str__(self) -> str:
        width = max(len(part) for part in self.errors)
        lines = [f"{part:<{width}}  {error:.1e}" for part, error in sorted(self.errors.items())]
        lines += [f"{name}: no gradient on some rank" for name in self.missing]
        verdict = "passed" if self.passed else "FAILED"
        return "\n".join(["largest relative error of a gradient", *lines, f"{verdict} (allowed: {self.tolerance:g})"])


def compare_gradients(
    build_task: Callable[[Recipe], Any],
    recipe: Recipe,
    config: DeepSpeedConfig,
    batches: Sequence[Any],
    step: int = 0,
) -> GradientReport:
    """Run one step's micro-batches through the engine and through plain autograd, and compare. Collective.

    Plain means: the bare task in the same precision, no recomputation, gradients of all micro-batches and ranks
    averaged at the end. ``batches`` are this rank's, as many as ``config`` accumulates.
    """
    engine = Engine(build_task, recipe, config, step)
    scale = engine.loss_scale()
    plain = _plain_gradients(engine, build_task, recipe, batches, step, scale)
    engine.accumulate_gradients(batches, step)
    errors: dict[str, float] = defaultdict(float)
    total = torch.stack([g.norm() for g in plain.values() if g is not None]).norm()
    for name, parameter in engine.task.named_parameters():
        expected = plain.get(name)
        if expected is None:  # frozen or missing
            continue
        ours = gathered_gradient(parameter)
        assert ours is not None, f"the engine has no gradient for {name}"
        # A gradient that is zero but for rounding is measured against the whole's.
        error = (ours.float() / scale - expected).norm() / expected.norm().clamp(min=1e-5 * total)
        errors[_part(name)] = max(errors[_part(name)], float(error.nan_to_num(nan=torch.inf)))
    engine.close()
    missing = [name for name, gradient in plain.items() if gradient is None]
    return GradientReport(dict(errors), missing, TOLERANCE[engine.config.precision])


def _plain_gradients(
    engine: Engine,
    build_task: Callable[[Recipe], Any],
    recipe: Recipe,
    batches: Sequence[Any],
    step: int,
    scale: float,
) -> dict[str, Tensor | None]:
    """The averaged gradient of every trainable parameter, None where autograd gave none on some rank."""
    torch.manual_seed(recipe.seed)  # the same initial weights as the engine's
    task = build_task(dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, checkpointing="none")))
    cast_parameters(task, engine.config.precision)
    task.to(engine.device)
    if engine.frozen:
        task.encoder.requires_grad_(False)
    task.train()
    if engine.frozen:
        task.encoder.eval()
    inputs, normalizer = engine.prepare(task, batches, step)
    for micro, x in enumerate(inputs):
        engine.seed(step, micro)
        loss, _ = task(x, normalizer)
        (loss * scale / len(inputs)).backward()
    return {name: _averaged(parameter, scale) for name, parameter in task.named_parameters() if parameter.requires_grad}


def _averaged(parameter: nn.Parameter, scale: float) -> Tensor | None:
    present = torch.tensor(float(parameter.grad is not None), device=parameter.device)
    distributed.all_reduce_sum(present)
    if present < distributed.world_size():
        return None
    assert parameter.grad is not None
    return distributed.all_reduce_sum(parameter.grad.float()) / (scale * distributed.world_size())


def _part(name: str) -> str:
    """The part of the model a parameter is reported under: its first two names without the task's prefix."""
    return ".".join(name.removeprefix("model.").split(".")[:2])
