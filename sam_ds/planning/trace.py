"""One forward and backward of a task on tensors without data: what it allocates, computes and moves, and when.

The task's own code runs, under torch's fake tensors: every allocation is seen with its size and its end, and nothing is
computed. DeepSpeed is not there. What it holds, and what it does with every gradient, is added by ``memory`` later, so
that one trace serves every way to spread the same task.
"""

from __future__ import annotations

import contextlib
import os
import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sam_ds.config.schema import Recipe
from sam_ds.ops.choice import TRITON, VARIABLE
from sam_ds.optim.param_groups import param_groups
from sam_ds.planning.operations import ATTENTION, MATRIX, kind_and_flops, moved_bytes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Modules by which memory is told apart, by the end of their path; all else is of what goes in, and of the loss.
_PARTS = {
    r"image_encoder": "encoder",
    r"mask_decoder": "decoder rounds",
    r"model\.blocks\.\d+": "encoder",
    r"decoder_blocks\.\d+": "decoder",
}
OTHER, BACKWARD = "inputs, prompts and loss", "backward"


@dataclass
class Work:
    """What the operations of one kind add up to."""

    flops: float = 0.0
    bytes: float = 0.0  # read and written, if no cache holds any of it
    calls: int = 0


@dataclass(frozen=True)
class Span:
    """The time from one parameter's gradient to the next. Bytes are of activations and gradients, not of weights."""

    most: dict[str, int]  # bytes by part, when most of them are there
    last: dict[str, int]  # and at the end
    parameter: str  # whose gradient ends the span; "" where it ends with the forward or the backward
    backward: bool


@dataclass(frozen=True)
class Trace:
    spans: tuple[Span, ...]
    work: dict[str, Work]  # by kind
    forward_flops: float  # of matrix products and attention, before any is computed again
    sizes: dict[str, int]  # elements of every parameter that is trained
    groups: tuple[tuple[str, ...], ...]  # of the optimizer
    kept: frozenset[str]  # parameters that ZeRO-3 gathers with the module around them, and keeps to the step's end
    frozen: int  # elements of all other parameters
    buffers: int  # bytes
    element_bytes: int  # of a weight
    averaged: bool  # a mean of the weights is kept


def trace(
    build: Callable[[], Any], wrap: Callable[[Any], None], batch: Any, recipe: Recipe, precision: str, gpu: bool
) -> Trace:
    """Run a micro-batch without data.

    Args:
        build: makes the task.
        wrap: switches its recomputation of activations on.
        batch: a micro-batch, with data (its sizes count, its values do not).
        recipe: whose encoder is frozen if ``optim.frozen_encoder_steps`` says so of any step.
        precision: fp32, bf16 or fp16, of weights and activations.
        gpu: ops choose as they do on a GPU, with the kernels if they are installed.
    """
    with torch.device("meta"):
        task = build()
    with _choosing(recipe, gpu), FakeTensorMode(allow_non_fake_inputs=True):
        _materialize(task, DTYPES[precision])
        task.train()
        if recipe.optim.frozen_encoder_steps:
            task.encoder.requires_grad_(False).eval()
        wrap(task)
        groups = param_groups(task, recipe.optim)
        recorder = _Recorder(task)
        with recorder:
            inputs = task.prepare(batch, recipe.train.steps - 1)
            loss, _ = task(inputs, torch.ones(()))
            recorder.end_span("")
            forward_flops = sum(recorder.work[kind].flops for kind in (MATRIX, ATTENTION) if kind in recorder.work)
            recorder.backward = True
            loss.backward()
            recorder.end_span("")
        parameters = list(task.parameters())
        return Trace(
            spans=tuple(recorder.spans),
            work=dict(recorder.work),
            forward_flops=forward_flops,
            sizes={name: p.numel() for name, p in task.named_parameters() if p.requires_grad},
            groups=tuple(tuple(group["names"]) for group in groups),
            kept=frozenset(_inside(task, tuple(task.leaf_modules()))),
            frozen=sum(p.numel() for p in parameters if not p.requires_grad),
            buffers=sum(b.nbytes for b in task.buffers()),
            element_bytes=DTYPES[precision].itemsize,
            averaged=recipe.optim.ema_decay > 0,
        )


@contextlib.contextmanager
def _choosing(recipe: Recipe, gpu: bool) -> Iterator[None]:
    """Ops that choose for themselves choose as on a GPU, or else as on a CPU but for what compiled code does there."""
    wanted = {"rel_pos_attention": recipe.model.attention, "mask_loss": recipe.loss.implementation, "rasterize": "auto"}
    own = "triton" if gpu and TRITON else "auto"
    chosen = {op: own if asked == "auto" else asked for op, asked in wanted.items()}
    chosen |= dict(pair.split("=") for pair in os.environ.get(VARIABLE, "").replace(" ", "").split(",") if "=" in pair)
    if chosen["rasterize"] != "triton":
        chosen["rasterize"] = "reference"
    names = {"TRITON_INTERPRET": "1", VARIABLE: ",".join(f"{op}={name}" for op, name in chosen.items())}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _materialize(task: nn.Module, dtype: torch.dtype) -> None:
    """Meta tensors become those of a device. As DeepSpeed does, parameters are cast, and buffers are not."""
    for module in task.modules():
        for name, parameter in module.named_parameters(recurse=False):
            weights = torch.empty(parameter.shape, dtype=dtype)
            setattr(module, name, nn.Parameter(weights, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _inside(task: nn.Module, classes: tuple[type[nn.Module], ...]) -> Iterator[str]:
    """The names of the parameters of modules of these classes."""
    for path, module in task.named_modules():
        if isinstance(module, classes):
            yield from (f"{path}.{name}" for name, _ in module.named_parameters())


class _Recorder(TorchDispatchMode):
    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.spans: list[Span] = []
        self.work: dict[str, Work] = {}
        self.backward = False
        self._alive: Counter[str] = Counter()
        self._total = self._peak = 0
        self._at_peak: dict[str, int] = {}
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self._inside: list[str] = []
        for name, module in task.named_modules():
            part = next((part for path, part in _PARTS.items() if re.search(rf"(^|\.){path}$", name)), None)
            if part:
                module.register_forward_pre_hook(lambda *_, part=part: self._inside.append(part))
                module.register_forward_hook(lambda *_: self._inside.pop() and None)
        for name, parameter in task.named_parameters():
            self._known.add(parameter.untyped_storage())
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p, name=name: self._gradient(p, name))
        for buffer in task.buffers():
            self._known.add(buffer.untyped_storage())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.prim.device.default:  # autograd asks fake tensors for it all the time
            return args[0].fake_device
        out = function(*args, **(kwargs or {}))
        given = tuple(x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        outs = tuple(x for x in tree_leaves(out) if isinstance(x, Tensor))
        moved = moved_bytes(given, outs)
        if moved:
            kind, flops = kind_and_flops(function, args, out)
            work = self.work.setdefault(kind, Work())
            work.flops, work.bytes, work.calls = work.flops + flops, work.bytes + moved, work.calls + 1
        for x in outs:
            self._see(x.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        part = self._inside[-1] if self._inside else BACKWARD if self.backward else OTHER
        size = storage.nbytes()
        weakref.finalize(storage, self._free, part, size)
        self._alive[part] += size
        self._total += size
        if self._total > self._peak:
            self._peak, self._at_peak = self._total, dict(self._alive)

    def _free(self, part: str, size: int) -> None:
        self._alive[part] -= size
        self._total -= size

    def _gradient(self, parameter: nn.Parameter, name: str) -> None:
        self.end_span(name)
        parameter.grad = None  # it goes into DeepSpeed's buffers

    def end_span(self, parameter: str) -> None:
        self.spans.append(Span(self._at_peak, dict(self._alive), parameter, self.backward))
        self._peak, self._at_peak = self._total, dict(self._alive)
