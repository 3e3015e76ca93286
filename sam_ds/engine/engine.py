"""DeepSpeed around a task: one optimizer step at a time, alike on every rank."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from torch import Tensor

from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.config.schema import Recipe
from sam_ds.engine import activation_checkpointing, distributed, replicas, settings, weights
from sam_ds.engine.ema import Ema
from sam_ds.engine.optimizers import build_adamw
from sam_ds.engine.timing import PhaseTimes
from sam_ds.engine.watchdog import watchdog
from sam_ds.optim.param_groups import param_groups
from sam_ds.optim.schedule import factor, peak_lr


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did. Tensors are this rank's and on its device: reading one waits for the step."""

    logs: dict[str, Tensor]  # scalars, "loss/total" among them; their mean over the ranks is a mean over objects
    count: Tensor  # objects in the step, on all ranks
    grad_norm: Tensor | float  # of all ranks' averaged gradient, before clipping; inf where the step was skipped
    skipped: bool  # the loss or a gradient was not finite: no weight and no optimizer state changed, on any rank
    lr: float  # the full learning rate (no layer decay)
    loss_scale: float  # of fp16, else 1


class Engine:
    """Trains a task under ZeRO 0 to 3.

    Where ``optim.frozen_encoder_steps`` is set, the task's encoder is frozen in the first so many steps. At the
    boundary DeepSpeed starts anew over all parameters (it never trains one that was frozen when it started, and
    lets frozen ones drift if they are frozen later): weights carry over exactly, AdamW's moments start again.
    """

    def __init__(
        self,
        build_task: Callable[[Recipe], Any],
        recipe: Recipe,
        config: DeepSpeedConfig,
        step: int = 0,
        paranoid: bool = False,
    ) -> None:
        """Collective.

        Args:
            build_task: makes the task afresh, on the host. A task is a module with a ``model`` and an ``encoder``,
                ``prepare(batch, step)``, ``forward(inputs, normalizer)``, ``checkpointed()``, ``leaf_modules()``,
                ``layer_of(name)`` and ``num_layers``; see tasks.SegmentImages.
            step: the next one to be trained.
            paranoid: compare in every step, over the ranks, what they should hold alike; see ``replicas``.

        Raises:
            UserError: settings that do not fit each other, the world or this machine.
        """
        activation_checkpointing.check(recipe.model)
        distributed.init()
        self.recipe, self._paranoid = recipe, paranoid
        self.config = config.with_world(distributed.world_size())
        self.device = distributed.device()
        self.times = PhaseTimes(self.device)
        self._build_task = build_task
        batch = self.config.global_batch(distributed.world_size())
        self._optim = dataclasses.replace(recipe.optim, lr=peak_lr(recipe.optim, batch))
        self._factor = factor(recipe.schedule, recipe.train.steps)
        self._ds: deepspeed.DeepSpeedEngine | None = None
        self._ema: Ema | None = None
        self.start_phase(self.frozen_at(step))

    @property
    def ds(self) -> deepspeed.DeepSpeedEngine:
        assert self._ds is not None, "the engine is closed"
        return self._ds

    @property
    def task(self) -> Any:
        """The task. Under ZeRO-3 its weights are only there while it runs."""
        return self.ds.module

    def frozen_at(self, step: int) -> bool:
        return step < self.recipe.optim.frozen_encoder_steps

    def start_phase(
        self, frozen: bool, state: dict[str, Tensor] | None = None, means: dict[str, Tensor] | None = None
    ) -> None:
        """(Re-)start DeepSpeed with the encoder frozen or not, from ``state`` (fp32) or fresh weights.

        ``means``: of the weights so far, where they are averaged; without them it begins anew.
        """
        self.close()
        torch.manual_seed(self.recipe.seed)  # every rank draws the same initial weights
        task = self._build_task(self.recipe if state is None else _without_init(self.recipe))
        if state is not None:
            task.load_state_dict(state)
        self.frozen = frozen
        if frozen:
            task.encoder.requires_grad_(False)
        self._originals = weights.float_copies(task, only_frozen=True)
        masters = weights.float_copies(task) if self.config.precision != "fp32" else {}
        self.shapes = {name: list(parameter.shape) for name, parameter in task.named_parameters()}
        self._groups = param_groups(task, self._optim)
        self._ds = self._initialize(task)
        if masters:
            weights.set_masters(self.ds, masters)
        decay = self.recipe.optim.ema_decay
        self._ema = Ema(self.ds, decay, means or {}) if decay else None
        self.train()

    def _initialize(self, task: Any) -> deepspeed.DeepSpeedEngine:
        # 1. Wrap before DeepSpeed hooks the modules, so that the hooks lie outside of the recomputation.
        activation_checkpointing.apply(task.checkpointed(), self.recipe.model)
        # 2. Before the hooks of ZeRO-3 are placed.
        if self.config.zero_stage == 3:
            weights.gather_as_one(task, task.leaf_modules())
        # 3. The optimizer takes the parameters where they will train.
        task.to(self.device)
        optimizer = build_adamw(self._groups, self._optim, self.device, self.config.offload_optimizer)
        buffers = {name: (buffer, buffer.dtype) for name, buffer in task.named_buffers()}
        ds = deepspeed.initialize(
            model=task, optimizer=optimizer, config=settings.for_deepspeed(self.config), dist_init_required=False
        )[0]
        distributed.bound_waits()
        # 4. Positions are computed from a random buffer in fp32: 16 bits would move every prompt.
        for name, buffer in task.named_buffers():
            assert buffer.dtype == buffers[name][1], f"DeepSpeed changed the buffer {name} to {buffer.dtype}"
        return ds

    def effective_config(self) -> dict[str, Any]:
        """Every setting that DeepSpeed runs with."""
        return settings.effective(self.ds, self.config, self._groups)

    def train(self) -> None:
        """Training mode; a frozen encoder stays without dropped paths."""
        self.ds.train()
        if self.frozen:
            self.task.encoder.eval()

    def train_step(self, batches: Sequence[Any], step: int) -> StepResult:
        """One optimizer step over this rank's micro-batches, as many as the config accumulates. Collective.

        Every random number comes from (seed, step): the step is the same whether or not the run was resumed.
        """
        if self.frozen and not self.frozen_at(step):
            self.start_phase(False, self.state_dict(everywhere=True), self.mean_state_dict(everywhere=True))
        lr = self._set_lr(step)
        logs, count = self.accumulate_gradients(batches, step)
        if self._paranoid:
            replicas.compare(self.task, step)
        grad_norm, skipped = self._step()
        if self._ema and not skipped:
            self._ema.update()
        self._mark("step", step)
        return StepResult(logs, count, grad_norm, skipped, lr, self.loss_scale())

    def accumulate_gradients(self, batches: Sequence[Any], step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Forward and backward of a step's micro-batches; returns their logs' means and all ranks' object count."""
        assert len(batches) == self.config.accumulation, "one batch for each accumulation step"
        inputs, normalizer = self.prepare(self.task, batches, step)
        count = normalizer * len(inputs) * distributed.world_size()
        self._mark("data", step)
        totals: dict[str, Tensor] = {}
        for micro, x in enumerate(inputs):
            self.seed(step, micro)
            loss, logs = self.ds(x, normalizer)
            self._mark("forward", step)
            self.ds.backward(_spoil_if_not_finite(loss) * self._missing_scale())
            self._mark("backward", step)
            if micro + 1 < len(inputs):
                self.ds.step()  # counts the micro-batch
            for name, value in {"loss/total": loss, **logs}.items():
                totals[name] = totals.get(name, 0) + value.detach() / len(inputs)
        return totals, count

    def _mark(self, part: str, step: int) -> None:
        self.times.mark(part)
        watchdog.mark(f"the end of {part} of step {step}")

    def prepare(self, task: Any, batches: Sequence[Any], step: int) -> tuple[list[Any], Tensor]:
        """The inputs of a step's micro-batches, and the mean count of a micro-batch over all ranks.

        Losses divided by it have a mean, over micro-batches and ranks, that is a mean over objects. Collective.
        """
        inputs = [task.prepare(batch.to(self.device, non_blocking=True), step) for batch in batches]
        total = distributed.all_reduce_sum(torch.stack([x.count for x in inputs]).sum())
        return inputs, total.clamp(min=1.0) / (len(inputs) * distributed.world_size())

    def _set_lr(self, step: int) -> float:
        lr = self._optim.lr * self._factor(step)
        for own, group in zip(self._groups, self.ds.optimizer.param_groups, strict=True):
            group["lr"] = lr * own["lr_scale"]
        return lr

    def seed(self, step: int, micro: int) -> None:
        """Dropped paths are drawn from torch's generator: seed it with what the micro-batch is, not with the past."""
        place = micro * distributed.world_size() + distributed.rank()
        text = f"{self.recipe.seed}/{step}/{place}".encode()
        torch.manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little"))

    def _step(self) -> tuple[Tensor | float, bool]:
        """Clip and step, or drop gradients that are not finite: the norm is of all ranks, so all decide alike."""
        if self.ds.optimizer is not self.ds.basic_optimizer:  # DeepSpeed's own wrapper checks the norm
            scale = self._missing_scale()  # without ZeRO the norm is that of the scaled gradient
            self.ds.step()
            skipped = bool(self.ds.optimizer.overflow)
            return (float("inf") if skipped else self.ds.get_global_grad_norm() / scale), skipped
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.task.parameters() if p.grad is not None])
        skipped = not bool(torch.isfinite(norm))  # the one host sync of the step
        if skipped:
            self.ds.zero_grad()
            self.ds.micro_steps += 1  # what is left of a step: the count of micro-batches goes on
        else:
            self.ds.step()  # clips by the same norm
        return norm, skipped

    def loss_scale(self) -> float:
        """What fp16 multiplies the loss by; 1 in other precisions."""
        if self.config.precision != "fp16":
            return 1.0
        optimizer = self.ds.optimizer
        scaler = getattr(optimizer, "loss_scale_config", None)
        return float(scaler.cur_scale if scaler else optimizer.loss_scale)

    def _missing_scale(self) -> float:
        """Without ZeRO, DeepSpeed 0.19 divides fp16's gradients by the loss scale and never multiplies the loss."""
        return self.loss_scale() if self.config.zero_stage == 0 else 1.0

    def state_dict(self, everywhere: bool = False) -> dict[str, Tensor]:
        """The task's weights and buffers in fp32 on the host: on rank 0, or on all; {} elsewhere. Collective."""
        return weights.gather(self.ds, self._originals, everywhere or distributed.is_main())

    def mean_state_dict(self, everywhere: bool = False) -> dict[str, Tensor]:
        """As ``state_dict``, with the mean of the model's weights; {} where the recipe keeps none. Collective."""
        if self._ema is None:
            return {}
        with self._ema.in_place_of_masters():
            return self.state_dict(everywhere)

    def inference_model(self) -> Any:
        """A copy of the model, whole on every rank, in the precision it trains in. Collective.

        It has the mean of the weights where the recipe keeps one (``optim.ema_decay``), and else those of now.
        Evaluating the copy leaves alone what ZeRO-3 has learnt of the order in which the task uses its weights.
        """
        task = self._build_task(_without_init(self.recipe))
        task.load_state_dict(self.mean_state_dict(everywhere=True) or self.state_dict(everywhere=True))
        weights.cast_parameters(task, self.config.precision)
        return task.model.to(self.device).eval()

    def full_state_dict(self) -> dict[str, Tensor]:
        """The model's own weights, under its own names (without the task's ``model.``), as ``state_dict``."""
        return self.split_state(self.state_dict())[0]

    @staticmethod
    def split_state(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The model's own weights under its own names, and what else the task trains."""
        model = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
        return model, {name: value for name, value in state.items() if not name.startswith("model.")}

    @staticmethod
    def join_state(model: dict[str, Tensor], rest: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state of the task that ``split_state`` split."""
        return {f"model.{name}": value for name, value in model.items()} | rest

    def close(self) -> None:
        """Let go of DeepSpeed's hooks and buffers."""
        if self._ds is not None:
            self._ds.destroy()
            self._ds = self._ema = None


def _without_init(recipe: Recipe) -> Recipe:
    """The recipe of a task whose weights are about to be replaced: there is no file to read."""
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, init=""))


def _spoil_if_not_finite(loss: Tensor) -> Tensor:
    """The loss, with gradients that are NaN if it is not finite.

    A loss can be NaN and its gradients not. Spoilt on one rank, they are spoilt in the average of all ranks, and
    the check of the averaged gradient's norm drops the step on every rank without another message or host sync.
    """
    return loss * torch.where(torch.isfinite(loss), 1.0, torch.nan)
