"""A run without data allocates what the run with data does."""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sam_ds import recipes
from sam_ds.config.schema import CurriculumConfig, Recipe
from sam_ds.engine import activation_checkpointing
from sam_ds.ops.choice import VARIABLE
from sam_ds.planning.operations import ATTENTION, MATRIX
from sam_ds.planning.plan import Tracer
from sam_ds.training import tasks


def small(checkpointing: str = "none") -> Recipe:
    recipe = recipes.get("tiny")
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, checkpointing=checkpointing),
        data=dataclasses.replace(recipe.data, crop_size=128, max_masks=4),
        prompts=dataclasses.replace(recipe.prompts, correction_rounds=1),
        curriculum=CurriculumConfig(),
    )


def measured_peak(recipe: Recipe, micro_batch: int) -> int:
    """Bytes of activations and gradients in one forward and backward, gradients given away as they come."""
    kit = tasks.kit(recipe.task)
    task = kit.build(recipe).train()
    activation_checkpointing.apply(task.checkpointed(), recipe.model)
    for parameter in task.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    batch = kit.full_batch(recipe, micro_batch)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        inputs = task.prepare(batch, 0)
        task(inputs, torch.ones(()))[0].backward()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("recipe", [small(), small("torch"), recipes.get("mae_tiny")], ids=["none", "torch", "mae"])
def test_the_peak_is_the_real_one(recipe: Recipe, tracer: Tracer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "rasterize=reference")  # numba's cannot run without data
    trace = tracer(recipe, 2, "fp32")
    predicted = max(sum(span.most.values()) for span in trace.spans)
    # Scratch memory inside operators is not seen without data.
    assert predicted == pytest.approx(measured_peak(recipe, 2), rel=0.03)


def test_memory_of_a_plain_vit_is_told_apart(tracer: Tracer) -> None:
    spans = tracer(recipes.get("mae_tiny"), 8, "fp32").spans
    parts = max(spans, key=lambda span: sum(span.most.values())).most
    # 4 blocks of 65 tokens of width 128, and 2 of 257 tokens of width 64.
    assert parts["encoder"] == pytest.approx(parts["decoder"], rel=0.02)


def test_every_gradient_comes_once(tracer: Tracer) -> None:
    trace = tracer(small(), 2, "fp32")
    names = [span.parameter for span in trace.spans if span.parameter]
    assert sorted(names) == sorted(trace.sizes)
    assert {name for group in trace.groups for name in group} == set(trace.sizes)
    assert [span.backward for span in trace.spans] == [False] + [True] * (len(trace.spans) - 1)


def test_work_grows_with_the_batch_and_not_with_recomputation(tracer: Tracer) -> None:
    one, two, again = tracer(small(), 1, "fp32"), tracer(small(), 2, "fp32"), tracer(small("torch"), 2, "fp32")
    assert two.forward_flops == pytest.approx(2 * one.forward_flops, rel=0.01)
    assert again.forward_flops == two.forward_flops
    assert again.work[MATRIX].flops > 1.2 * two.work[MATRIX].flops


def test_a_gpu_has_the_kernels(gpu_tracer: Tracer, tracer: Tracer) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    recipe = small()
    before = dict(os.environ)
    on_gpu, on_cpu = gpu_tracer(recipe, 2, "bf16"), tracer(recipe, 2, "bf16")
    assert dict(os.environ) == before
    assert on_gpu.work[ATTENTION].flops > 0
    assert max(sum(s.most.values()) for s in on_gpu.spans) < max(sum(s.most.values()) for s in on_cpu.spans)


def test_ops_are_those_that_were_chosen(gpu_tracer: Tracer, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")

    def peak(recipe: Recipe) -> int:
        return max(sum(span.most.values()) for span in gpu_tracer(recipe, 2, "bf16").spans)

    recipe = small()
    plain = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, attention="reference"),
        loss=dataclasses.replace(recipe.loss, implementation="reference"),
    )
    assert peak(plain) > 1.1 * peak(recipe)
    monkeypatch.setenv(VARIABLE, "mask_loss=reference")  # overrules the recipe, and says nothing of the others
    loud = dataclasses.replace(recipe, seed=1)
    assert peak(recipe) < peak(loud) < peak(plain)


def test_a_frozen_encoder_keeps_and_computes_less(tracer: Tracer) -> None:
    recipe = small()
    frozen = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, frozen_encoder_steps=1))
    rests, trains = tracer(frozen, 2, "fp32"), tracer(recipe, 2, "fp32")
    assert rests.frozen + sum(rests.sizes.values()) == sum(trains.sizes.values()) and rests.frozen > 0
    assert rests.work[MATRIX].flops < 0.8 * trains.work[MATRIX].flops


def test_no_file_of_weights_is_read(tracer: Tracer, tmp_path: Path) -> None:
    recipe = small()
    started = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, init=str(tmp_path / "not there.pth")))
    assert tracer(started, 2, "fp32").sizes == tracer(recipe, 2, "fp32").sizes
