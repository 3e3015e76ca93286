"""Plain ViTs in SAM's image encoder: equal where both models are, resized where they are not, or refused."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from sam_ds.config.errors import UserError
from sam_ds.config.schema import MaeConfig, ModelConfig
from sam_ds.modeling.convert import save_weights, shapes_of
from sam_ds.modeling.handover import load_start, plan, resize_patches, resize_positions
from sam_ds.modeling.mae import Mae
from sam_ds.modeling.presets import VIT_PRESETS, SamConfig, build_sam, sam_config, vit_config
from sam_ds.modeling.sam import Sam

DIM, DEPTH, HEADS, GRID, PATCH = 48, 3, 3, 8, 8
SAME = SamConfig(
    embed_dim=DIM,
    depth=DEPTH,
    num_heads=HEADS,
    global_blocks=(0, 2),
    image_size=GRID * PATCH,
    patch_size=PATCH,
    window_size=4,
    prompt_dim=64,
    decoder_heads=4,
    decoder_mlp_dim=96,
    iou_hidden=32,
)
# The names of transformers' ViTMAE, and MAE's.
TRANSFORMERS = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("layers.", "blocks."),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.o_proj", "attn.proj"),
    ("layernorm.", "norm."),
)


def randomise(module: nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in module.state_dict().values():
            weight.copy_(torch.randn_like(weight) / max(weight[0].numel(), 4) ** 0.5)


def vit_mae() -> nn.Module:
    """transformers' encoder, all of its patches seen."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        hidden_size=DIM,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * DIM,
        layer_norm_eps=1e-6,
        image_size=GRID * PATCH,
        patch_size=PATCH,
        mask_ratio=0.0,
    )
    model = transformers.ViTMAEModel(config).eval()
    randomise(model)
    return model


def released_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of transformers' state, as in MAE's release: one matrix for queries, keys and values."""
    renamed = {}
    for name, value in state.items():
        released = functools.reduce(lambda text, pair: text.replace(*pair), TRANSFORMERS, name)
        renamed[released] = value
    for name in [name for name in renamed if ".q_proj." in name]:
        parts = [renamed.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
        renamed[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    return renamed


@torch.no_grad()
def test_blocks_do_what_transformers_do(tmp_path: Path) -> None:
    """Each block of SAM, over the same tokens: the whole grid at once, or each window by itself, and no class token."""
    theirs = vit_mae()
    save_weights(released_names(theirs.state_dict()), tmp_path / "mae.pth")
    ours = Sam(SAME).eval()
    load_start(ours, str(tmp_path / "mae.pth"))
    images = torch.randn(2, 3, GRID * PATCH, GRID * PATCH)
    encoder, embeddings = ours.image_encoder, theirs.embeddings
    x = encoder.patch_embed(images) + encoder.pos_embed  # [B, g, g, D]
    tokens = embeddings.patch_embeddings(images) + embeddings.position_embeddings[:, 1:]  # [B, g * g, D]
    assert_close(x.flatten(1, 2), tokens, rtol=0, atol=1e-5)
    for index, block in enumerate(encoder.blocks):
        window = GRID if index in SAME.global_blocks else SAME.window_size
        alone = windows(x, window)
        x = block(x)
        there = theirs.layers[index](alone.flatten(1, 2))
        assert_close(windows(x, window).flatten(1, 2), there, rtol=0, atol=1e-5)


def windows(x: Tensor, side: int) -> Tensor:
    """[B, g, g, D] to [B * n, side, side, D]."""
    cells = x.unflatten(1, (-1, side)).unflatten(3, (-1, side))  # [B, n, side, m, side, D]
    return cells.permute(0, 1, 3, 2, 4, 5).flatten(0, 2)


def mae(**sizes: int) -> Mae:
    """The tiny one, or of other sizes."""
    built = Mae(dataclasses.replace(vit_config("vit_tiny"), **sizes), MaeConfig())
    randomise(built)
    return built


def test_what_a_sam_takes_of_a_masked_autoencoder(tmp_path: Path) -> None:
    given = mae()
    path = str(tmp_path / "mae.safetensors")
    save_weights(given.state_dict(), path)
    fresh = build_sam(ModelConfig(preset="tiny")).state_dict()
    sam = build_sam(ModelConfig(preset="tiny", init=path))
    state, handover = sam.state_dict(), plan(shapes_of(fresh), shapes_of(given.state_dict()), path)
    assert handover.resized == {"image_encoder.pos_embed": "pos_embed"}
    assert handover.taken["image_encoder.blocks.3.mlp.lin2.bias"] == "blocks.3.mlp.fc2.bias"
    for mine, name in handover.taken.items():
        assert_close(state[mine], given.state_dict()[name], rtol=0, atol=0)
    assert len(handover.taken) == 2 + 4 * 12 and state.keys() == {*handover.taken, *handover.resized, *handover.new}
    assert all(not state[name].any() for name in handover.new if "rel_pos" in name)
    assert {name.split(".")[0] for name in handover.left} == {
        "cls_token", "norm", "mask_token", "decoder_embed", "decoder_pos_embed", "decoder_blocks", "decoder_norm",
        "decoder_pred",
    }  # fmt: skip
    assert sam.image_encoder.pos_embed.requires_grad and state["image_encoder.pos_embed"].shape == (1, 64, 64, 128)
    said = str(handover)
    assert "50 weights taken, 1 resized (image_encoder.pos_embed)" in said and "\n" not in said
    assert "blocks.attn.rel_pos_h" in said and "neck" in said and "mask_token" in said
    assert json.loads(json.dumps(handover.to_dict()))["new"] == list(handover.new)


def test_the_encoder_alone_and_a_classifier_are_as_good(tmp_path: Path) -> None:
    """Release files have no decoder, classifiers a head; timm's have these names."""
    whole = mae().state_dict()
    encoder = {name: value for name, value in whole.items() if not name.startswith(("decoder", "mask"))}
    head = {"head.weight": torch.zeros(10, 128), "head.bias": torch.zeros(10)}
    torch.save({"model": encoder}, tmp_path / "released.pth")
    save_weights(encoder | head, tmp_path / "classifier.safetensors")
    save_weights(whole, tmp_path / "whole.pth")
    states = [
        build_sam(ModelConfig(preset="tiny", init=str(tmp_path / name))).image_encoder.blocks.state_dict()
        for name in ("whole.pth", "released.pth", "classifier.safetensors")
    ]
    assert_close(states[1], states[0], rtol=0, atol=0)
    assert_close(states[2], states[0], rtol=0, atol=0)


def test_a_plain_vit_starts_from_a_plain_vit(tmp_path: Path) -> None:
    """Of another grid and other patches, with the class token, and its own decoder."""
    given, own = mae(), mae(image_size=64, patch_size=4, decoder_depth=1)
    save_weights(given.state_dict(), tmp_path / "mae.pth")
    before = {name: value.clone() for name, value in own.state_dict().items()}
    handover = load_start(own, str(tmp_path / "mae.pth"))
    state = own.state_dict()
    assert set(handover.resized) == {"patch_embed.proj.weight"}  # the grid is the same
    assert_close(state["cls_token"], given.cls_token.detach(), rtol=0, atol=0)
    assert_close(state["decoder_pred.weight"], before["decoder_pred.weight"], rtol=0, atol=0)
    assert "decoder_blocks.1.norm1.weight" in handover.left and "decoder_pred.weight" in handover.left


def test_a_part_of_a_sam_starts_from_a_sam(tmp_path: Path) -> None:
    """What holds its encoder or trunk, as other tasks' models do, leaves the decoder."""
    sam = build_sam(ModelConfig(preset="tiny"))
    randomise(sam)
    save_weights(sam.state_dict(), tmp_path / "sam.pth")
    holder = nn.Module()
    holder.image_encoder, holder.head = Sam(sam_config("tiny")).image_encoder, nn.Linear(3, 3)
    for model, names in ((holder, {"head.weight", "head.bias"}), (holder.image_encoder, set())):
        handover = load_start(model, str(tmp_path / "sam.pth"))
        assert set(handover.new) == names
        assert all(name.split(".")[0] in ("prompt_encoder", "mask_decoder") for name in handover.left)
    assert_close(holder.image_encoder.state_dict(), sam.image_encoder.state_dict(), rtol=0, atol=0)


def test_positions_are_those_of_the_release(tmp_path: Path) -> None:
    """To SAM's 64 x 64, as MAE's own resizing has it, whatever the class token's is."""
    given = torch.randn(1, 1 + 14 * 14, 6)
    grid = given[:, 1:].reshape(1, 14, 14, 6).permute(0, 3, 1, 2)
    wanted = F.interpolate(grid, size=(64, 64), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    assert_close(resize_positions(given, (1, 64, 64, 6)), wanted, rtol=0, atol=0)
    assert_close(resize_positions(given[:, 1:], (1, 64, 64, 6)), wanted, rtol=0, atol=0)
    assert_close(resize_positions(given, (1, 1 + 64 * 64, 6)), torch.cat([given[:, :1], wanted.flatten(1, 2)], 1))
    ramp = torch.arange(14.0).expand(14, 14)  # rows stay rows, and columns columns
    columns = torch.cat([torch.zeros(1, 1, 1), ramp.reshape(1, -1, 1)], dim=1)
    resized = resize_positions(columns, (1, 28, 28, 1))[0, :, :, 0]
    wanted = ((torch.arange(28.0) + 0.5) / 2 - 0.5).expand(28, 28)
    # Torch's cubic, with its -0.75, does not keep a slope exactly.
    assert_close(resized[:, 4:24], wanted[:, 4:24], rtol=0, atol=0.05)


def test_larger_patches_see_what_the_smaller_saw() -> None:
    kernel = torch.randn(32, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    resized = resize_patches(kernel, (32, 3, 16, 16))
    # Any patch, magnified.
    patch = torch.randn(8, 3, 14, 14, generator=torch.Generator().manual_seed(1))
    larger = F.interpolate(patch, (16, 16), mode="bilinear", align_corners=False)
    tokens = F.conv2d(patch, kernel).flatten(1)
    assert_close(F.conv2d(larger, resized).flatten(1), tokens, rtol=0, atol=1e-4)
    # A smooth picture, drawn at both sizes: not so of a kernel that is resized as a picture.
    tokens = [F.conv2d(smooth(2 * side), k, stride=side) for side, k in ((14, kernel), (16, resized))]
    naive = F.conv2d(smooth(32), F.interpolate(kernel, (16, 16), mode="bicubic"), stride=16)
    error, of_naive = ((other - tokens[0]).norm() / tokens[0].norm() for other in (tokens[1], naive))
    assert error < 0.002
    assert of_naive > 0.2


def smooth(side: int) -> Tensor:
    """[1, 3, side, side]: the same picture at any size."""
    at = (torch.arange(side) + 0.5) / side
    waves = [torch.sin(2.0 * at[:, None] + 1.5 * at[None] + phase) + 1 for phase in range(3)]
    return torch.stack(waves)[None]


def test_the_same_patches_stay() -> None:
    kernel = torch.randn(4, 3, 8, 8)
    assert_close(resize_patches(kernel, (4, 3, 8, 8)), kernel, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 64}, "holds a ViT of width 64 and depth 4, and this model has width 128 and depth 4: choose"),
        ({"depth": 5}, "holds a ViT of width 128 and depth 5, and this model has width 128 and depth 4: choose"),
    ],
)
def test_another_size_is_refused(tmp_path: Path, change: dict[str, int], message: str) -> None:
    save_weights(mae(**change).state_dict(), tmp_path / "mae.pth")
    refused(tmp_path / "mae.pth", message)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("blocks.1.attn.qkv.bias", None, "lacks this model's image_encoder.blocks.1.attn.qkv.bias [384]"),
        ("pos_embed", torch.zeros(1, 1 + 15 * 16, 128), "has [1, 241, 128] for this model's image_encoder.pos_embed"),
        ("pos_embed", torch.zeros(1, 3 + 16 * 16, 128), "has [1, 259, 128] for this model's image_encoder.pos_embed"),
        (
            "blocks.0.mlp.fc1.weight",
            torch.zeros(256, 128),
            "has [256, 128] for this model's image_encoder.blocks.0.mlp",
        ),
        (
            "patch_embed.proj.weight",
            torch.zeros(128, 1, 8, 8),
            "has [128, 1, 8, 8] for this model's image_encoder.patch",
        ),
        ("patch_embed.proj.weight", torch.zeros(()), "holds neither a SAM nor a plain ViT (it has blocks.0"),
        ("patch_embed.proj.weight", None, "holds neither a SAM nor a plain ViT (it has blocks.0"),
    ],
)
def test_what_is_no_start_is_refused(tmp_path: Path, name: str, value: Tensor | None, message: str) -> None:
    state = mae().state_dict()
    del state[name]
    save_weights(state if value is None else state | {name: value}, tmp_path / "mae.pth")
    refused(tmp_path / "mae.pth", message)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "empty.pth")
    refused(tmp_path / "empty.pth", "holds neither a SAM nor a plain ViT (it has nothing, …)")


def test_a_sam_of_another_size_is_another_model(tmp_path: Path) -> None:
    save_weights(Sam(SAME).state_dict(), tmp_path / "sam.pth")
    refused(tmp_path / "sam.pth", "holds the weights of another model")


def test_a_plain_vit_does_not_start_from_a_sam(tmp_path: Path) -> None:
    save_weights(build_sam(ModelConfig(preset="tiny")).state_dict(), tmp_path / "sam.pth")
    with pytest.raises(UserError, match=r"sam\.pth holds SAM's encoder, and this model starts from a plain ViT"):
        load_start(mae(), str(tmp_path / "sam.pth"))


def test_a_training_s_checkpoint_needs_trust(tmp_path: Path) -> None:
    """MAE's code puts its command line into one."""
    torch.save({"model": mae().state_dict(), "args": argparse.Namespace(lr=1.0)}, tmp_path / "checkpoint.pth")
    refused(tmp_path / "checkpoint.pth", "is refused: it is no plain file of weights")


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        build_sam(ModelConfig(preset="tiny", init=str(path)))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("vit, sam", [("vit_b16", "vit_b"), ("vit_l16", "vit_l"), ("vit_h14", "vit_h"),
                                      ("vit_meta_sam_large", "meta_sam_large")])  # fmt: skip
def test_every_size_fits_its_sam(vit: str, sam: str) -> None:
    with torch.device("meta"):
        given, own = Mae(VIT_PRESETS[vit], MaeConfig()), Sam(sam_config(sam))
    assert given.blocks[0].attn.num_heads == own.image_encoder.blocks[0].attn.num_heads
    handover = plan(shapes_of(own.state_dict()), shapes_of(given.state_dict()), vit)
    wanted = {"image_encoder.pos_embed"} | ({"image_encoder.patch_embed.proj.weight"} if "14" in vit else set())
    assert set(handover.resized) == wanted
    assert not any("rel_pos" not in name and "blocks" in name for name in handover.new)
