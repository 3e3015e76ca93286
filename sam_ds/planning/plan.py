"""The plan of a training: does it fit, how long does it take, what does it cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

from sam_ds.config import curriculum
from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.config.schema import CurriculumConfig, Recipe
from sam_ds.planning.machines import Gpu
from sam_ds.planning.memory import Memory, memory
from sam_ds.planning.step_time import step_time
from sam_ds.planning.trace import Trace

# Pictures a second that one core reads and prepares, 64 of 100 masks each: benchmarks/results/data.csv.
PICTURES_A_CORE = 63.0
# A checkpoint holds float32 weights and AdamW's two moments.
_CHECKPOINT_BYTES = 12

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
    def workers(self) -> int:
        """Loader processes a rank that keep up, each with a core of its own."""
        return math.ceil(self.pictures_per_second / self.world / PICTURES_A_CORE)

    @property
    def checkpoint_bytes(self) -> int:
        return _CHECKPOINT_BYTES * self.parameters

    @property
    def kept_bytes(self) -> int:
        """Of all checkpoints that are there at once, one being written among them."""
        train = self.recipe.train
        spaced = train.steps // train.keep_every if train.keep_every else 0
        return self.checkpoint_bytes * (train.keep_last + train.keep_best + spaced + 1)


def make_plan(recipe: Recipe, config: DeepSpeedConfig, gpu: Gpu, world: int, tracer: Tracer) -> Plan:
    """Plan a training on ``world`` GPUs. Each stage of a curriculum counts by its length.

    Raises:
        UserError: the config's batch does not fit so many ranks.
    """
    config = config.with_world(world)
    stages = curriculum.stages(recipe)
    lasts = [first for first, _ in stages[1:]] + [recipe.train.steps]
    worst, parts, forward, sizes = None, dict[str, float](), 0.0, 0
    for (first, stage), last in zip(stages, lasts, strict=True):
        weight = (last - first) / recipe.train.steps
        alone = dataclasses.replace(stage, curriculum=CurriculumConfig())
        traced = tracer(alone, config.micro_batch, config.precision)
        held = memory(traced, config, world)
        if worst is None or held.total > worst.total:
            worst = held
        for name, seconds in step_time(traced, config, gpu, world).parts.items():
            parts[name] = parts.get(name, 0.0) + weight * seconds
        forward += weight * traced.forward_flops
        sizes = sum(traced.sizes.values()) + traced.frozen
    assert worst is not None, "a recipe has a stage"
    reserve = int(gpu.reserve + gpu.fragments * worst.total)
    return Plan(recipe, config, gpu, world, worst, reserve, parts, forward, sizes)
