"""The plan of a training: does it fit, how long does it take, what does it cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sam_ds.config import curriculum
from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.config.errors import UserError
from sam_ds.config.schema import CurriculumConfig, Recipe
from sam_ds.planning.machines import Gpu
from sam_ds.planning.memory import Memory, memory
from sam_ds.planning.step_time import step_time
from sam_ds.planning.trace import Trace
from sam_ds.storage import checkpoints

# By task, pictures a second that one core reads and prepares, where it was measured (benchmarks/results): SA-1B's with
# 64 of 100 masks each (data.csv), ImageNet's of 500 x 375 pixels (pictures.csv).
PICTURES_A_CORE = {"segment_images": 63.0, "pretrain_mae": 485.0, "classify_images": 485.0}
# Keys of zero_optimization and bf16 that change memory or time in ways that are not planned, where not as usual.
_USUAL = {
    "contiguous_gradients": True,
    "reduce_scatter": True,
    "use_multi_rank_bucket_allreduce": True,
    "parameter_alignment": False,
    "zero_hpz_partition_size": 1,
    "zero_quantized_weights": False,
    "zero_quantized_nontrainable_weights": False,
    "zero_quantized_gradients": False,
}
_BF16 = ("bf16_master_weights_and_grads", "bf16_optimizer_states")

# What runs a micro-batch of a stage of a recipe without data, in a precision.
Tracer = Callable[[Recipe, int, str], Trace]


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    config: DeepSpeedConfig
    gpu: Gpu
    world: int
    memory: Memory  # of a GPU, in the stage that needs most
    reserve: int  # bytes for the driver, communication, and what the allocator loses
    step_parts: dict[str, float]  # seconds of a step, meant over the stages
    forward_flops: float  # of a micro-batch, meant over the stages
    parameters: int

    @property
    def needed(self) -> float:
        """Bytes of a GPU."""
        return self.memory.total + self.reserve

    @property
    def fits(self) -> bool:
        return self.needed <= self.gpu.memory

    @property
    def nodes(self) -> float:
        return self.world / self.gpu.per_node

    @property
    def batch(self) -> int:
        return self.config.global_batch(self.world)

    @property
    def step_seconds(self) -> float:
        return sum(self.step_parts.values())

    @property
    def pictures_per_second(self) -> float:
        return self.batch / self.step_seconds

    @property
    def steps(self) -> int:
        return self.recipe.train.steps

    @property
    def hours(self) -> float:
        """Of training; saving, evaluation and restarts are not in it."""
        return self.steps * self.step_seconds / 3600

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.world

    @property
    def dollars(self) -> float:
        return self.gpu_hours * self.gpu.price

    @property
    def utilization(self) -> float:
        """MFU: the part of the datasheet's peak that the model's own work (forward, and twice that backward) takes."""
        work = 3 * self.forward_flops * self.config.accumulation
        return work / self.step_seconds / self.gpu.peak

    @property
    def workers(self) -> int | None:
        """Loader processes a rank that keep up, each with a core of its own; None where no such rate is known."""
        rate = PICTURES_A_CORE.get(self.recipe.task)
        return None if rate is None else math.ceil(self.pictures_per_second / self.world / rate)

    @property
    def checkpoint_bytes(self) -> int:
        return checkpoints.space_for_one(self.recipe, self.parameters)

    @property
    def kept_bytes(self) -> int:
        """Of all checkpoints that are there at once, one being written among them."""
        return checkpoints.space_for_all(self.recipe, self.parameters)


def make_plan(recipe: Recipe, config: DeepSpeedConfig, gpu: Gpu, world: int, tracer: Tracer) -> Plan:
    """Plan a training on ``world`` GPUs. Each of its phases counts by its length.

    Raises:
        UserError: the config's batch does not fit so many ranks, or its ZeRO stage is not one that is planned.
    """
    if config.zero_stage < 2:
        raise UserError(
            f"{config.source}: ZeRO stage {config.zero_stage} is not planned; stage 2 holds less and sends as much"
        )
    config = config.with_world(world)
    worst, parts, forward, parameters = None, dict[str, float](), 0.0, 0
    for phase, weight in _phases(recipe):
        traced = tracer(phase, config.micro_batch, config.precision)
        held = memory(traced, config, world)
        if worst is None or held.total > worst.total:
            worst = held
        for name, seconds in step_time(traced, config, gpu, world).items():
            parts[name] = parts.get(name, 0.0) + weight * seconds
        forward += weight * traced.forward_flops
        parameters = sum(traced.sizes.values()) + traced.frozen
    assert worst is not None, "a recipe has a stage"
    reserve = int(gpu.reserve + gpu.fragments * (worst.total - worst.steady))
    return Plan(recipe, config, gpu, world, worst, reserve, parts, forward, parameters)


def not_planned(config: DeepSpeedConfig, recipe: Recipe) -> list[str]:
    """Settings that change memory or time, and that a plan takes no account of."""
    zero = config.raw.get("zero_optimization", {})
    found = [key for key, usual in _USUAL.items() if zero.get(key, usual) != usual]
    found += [f"bf16.{key}" for key, value in config.raw.get("bf16", {}).items() if value and key in _BF16]
    found += [
        f"{key}.ratio" for key in ("offload_optimizer", "offload_param") if zero.get(key, {}).get("ratio", 1.0) != 1.0
    ]
    return found + ["model.checkpoint_offload"] * recipe.model.checkpoint_offload


def _phases(recipe: Recipe) -> Iterator[tuple[Recipe, float]]:
    """The stages of a curriculum, and the frozen start: each as a recipe of its own, and its part of the steps."""
    stages = curriculum.stages(recipe)
    lasts = [first for first, _ in stages[1:]] + [recipe.train.steps]
    frozen = recipe.optim.frozen_encoder_steps
    for (first, stage), last in zip(stages, lasts, strict=True):
        alone = dataclasses.replace(stage, curriculum=CurriculumConfig())
        resting = max(0, min(frozen, last) - first)
        for steps, rests in ((resting, 1), (last - first - resting, 0)):
            if steps > 0:
                optim = dataclasses.replace(alone.optim, frozen_encoder_steps=rests)
                yield dataclasses.replace(alone, optim=optim), steps / recipe.train.steps
