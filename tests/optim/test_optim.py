"""Parameter groups, schedules and the choice of an AdamW."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sam_ds.config.errors import UserError
from sam_ds.config.schema import OptimConfig, Recipe, ScheduleConfig, TrainConfig
from sam_ds.optim.build import choose
from sam_ds.optim.param_groups import decays, param_groups
from sam_ds.optim.schedule import batch_note, factor, peak_lr

TABLES = (
    "model.image_encoder.pos_embed",
    "model.image_encoder.blocks.3.attn.rel_pos_h",
    "model.image_encoder.blocks.3.attn.rel_pos_w",
    "model.prompt_encoder.point_embeddings.2.weight",
    "model.prompt_encoder.not_a_point_embed.weight",
    "model.prompt_encoder.no_mask_embed.weight",
    "model.mask_decoder.iou_token.weight",
    "model.mask_decoder.mask_tokens.weight",
    "cls_token",
    "model.mask_token",
)
MATRICES = (
    "model.image_encoder.patch_embed.proj.weight",
    "model.image_encoder.blocks.0.attn.qkv.weight",
    "model.image_encoder.neck.2.weight",
    "model.prompt_encoder.mask_downscaling.0.weight",
    "model.mask_decoder.transformer.layers.0.self_attn.q_proj.weight",
    "model.mask_decoder.output_hypernetworks_mlps.0.layers.1.weight",
    "model.decoder_embed.weight",  # of a masked autoencoder: a projection, whatever it is called
)


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_not_decayed(name: str) -> None:
    assert not decays(name, nn.Parameter(torch.zeros(4, 4)))


@pytest.mark.parametrize("name", MATRICES)
def test_matrices_are_decayed_and_vectors_are_not(name: str) -> None:
    assert decays(name, nn.Parameter(torch.zeros(4, 4)))
    assert not decays(name, nn.Parameter(torch.zeros(4)))  # the neck's LayerNorm2d is called like its convolutions


class Layered(nn.Module):
    num_layers = 3

    def __init__(self) -> None:
        super().__init__()
        self.embed_patches = nn.Linear(2, 2)
        self.blocks = nn.ModuleList([nn.Linear(2, 2) for _ in range(2)])
        self.head = nn.Linear(2, 2)

    def layer_of(self, name: str) -> int | None:
        if name.startswith("embed_patches"):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks") else None


def test_groups_hold_every_trainable_parameter_once_with_its_rate() -> None:
    task = Layered()
    task.head.bias.requires_grad_(False)
    groups = param_groups(task, OptimConfig(lr=1.0, layer_decay=0.5, weight_decay=0.1))
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    assert rates["embed_patches.weight"] == 0.125 and rates["blocks.0.weight"] == 0.25
    assert rates["blocks.1.bias"] == 0.5 and rates["head.weight"] == 1.0
    assert "head.bias" not in rates and len(rates) == 7
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}
    assert sum(len(group["params"]) for group in groups) == 7


def test_nothing_trainable_is_an_error() -> None:
    with pytest.raises(ValueError, match="trainable"):
        param_groups(Layered().requires_grad_(False), OptimConfig())


def test_step_schedule() -> None:
    at = factor(ScheduleConfig("step", warmup_steps=4, milestones=(10, 20), gamma=0.1), 30)
    assert [at(s) for s in (0, 3, 4, 9)] == [0.25, 1.0, 1.0, 1.0]
    assert at(10) == pytest.approx(0.1) and at(25) == pytest.approx(0.01)


def test_cosine_schedule() -> None:
    at = factor(ScheduleConfig("cosine", warmup_steps=10, final=0.2), 110)
    assert at(4) == 0.5 and at(10) == 1.0
    assert at(60) == pytest.approx(0.6) and at(110) == pytest.approx(0.2) and at(500) == pytest.approx(0.2)


def test_constant_and_rsqrt_schedules() -> None:
    assert factor(ScheduleConfig("constant", warmup_steps=0), 10)(7) == 1.0
    at = factor(ScheduleConfig("rsqrt", warmup_steps=100), 1000)
    assert at(100) == 1.0 and at(400) == 0.5 and at(49) == 0.5
    assert at(900) == pytest.approx(1 / math.sqrt(9))


def test_bad_schedules_are_the_users_mistake() -> None:
    with pytest.raises(UserError, match="cosine"):
        factor(ScheduleConfig("cosin"), 10)
    with pytest.raises(UserError, match="rise"):
        factor(ScheduleConfig("step", milestones=(5, 5)), 10)


def _all_fine(implementation: str) -> str:
    return ""


def test_choice_of_implementation() -> None:
    assert choose("auto", "cuda", False, _all_fine).implementation == "torch"
    assert choose("auto", "cuda", True, _all_fine).implementation == "deepspeed_cpu"
    fallback = choose("auto", "cuda", True, lambda name: "no compiler")
    assert fallback.implementation == "torch" and "no compiler" in fallback.warning
    assert choose("apex_fused", "cuda", False, _all_fine).implementation == "apex_fused"
    assert choose("torch", "cuda", True, _all_fine).warning


@pytest.mark.parametrize(
    ("wanted", "device", "offload", "words"),
    [
        ("adamw", "cpu", False, "known"),
        ("apex_fused", "cpu", False, "GPU"),
        ("deepspeed_cpu", "cuda", False, "offload_optimizer"),
        ("deepspeed_fused", "cuda", True, "host"),
    ],
)
def test_impossible_choices_are_the_users_mistake(wanted: str, device: str, offload: bool, words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose(wanted, device, offload, _all_fine)


def test_a_named_implementation_that_is_missing_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="not installed"):
        choose("apex_fused", "cuda", False, lambda name: "apex is not installed")


def test_the_rate_grows_with_the_batch_it_is_meant_for() -> None:
    mae = OptimConfig(lr=1.5e-4, lr_batch=256)
    assert peak_lr(mae, 4096) == pytest.approx(2.4e-3)
    assert peak_lr(mae, 64) == pytest.approx(3.75e-5)
    assert peak_lr(OptimConfig(lr=8e-4), 4096) == 8e-4
    with pytest.raises(UserError, match=r"is 0\.2048 for the 4096 of a step: more than 0\.1"):
        peak_lr(OptimConfig(lr=5e-5, lr_batch=1), 4096)


def test_a_batch_that_a_recipe_is_not_made_for_is_told() -> None:
    recipe = Recipe("mine", optim=OptimConfig(lr=1e-4), train=TrainConfig(steps=1000, made_for_batch=256))
    assert batch_note(recipe, 256, "own.json") == ""
    note = batch_note(recipe, 64, "own.json")
    assert "made for 256 pictures a step, and own.json has 64: train.steps=1000 sees 25% of the pictures" in note
    assert "optim.lr=0.0001" in note
    follows = Recipe("mine", optim=OptimConfig(lr=1e-4, lr_batch=256), train=TrainConfig(made_for_batch=256))
    assert "optim.lr" not in batch_note(follows, 64, "own.json"), "its rate grows with the batch"
    assert batch_note(Recipe("any"), 64, "own.json") == ""
