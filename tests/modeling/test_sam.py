"""What a Sam of ours does beyond Meta's: types, drop path, presets, one graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sam_ds.config.errors import UserError
from sam_ds.config.schema import ModelConfig
from sam_ds.modeling.convert import save_weights
from sam_ds.modeling.presets import PRESETS, SamConfig, build_sam
from sam_ds.modeling.sam import Sam
from sam_ds.modeling.vit import DropPath, distances
from sam_ds.types import MASKED, POSITIVE, Prompts

from .conftest import SMALL


def make_prompts(objects: int, slots: int = 3) -> Prompts:
    torch.manual_seed(2)
    side = 4 * SMALL.grid_size
    return Prompts(
        points=torch.rand(objects, slots, 2) * SMALL.image_size,
        labels=torch.randint(MASKED, 4, (objects, slots)),
        masks=torch.randn(objects, 1, side, side),
        has_mask=torch.arange(objects) % 2 == 0,
    )


def rollout(sam: Sam, prompts: Prompts) -> list[Tensor]:
    """An encoding and one round of each kind; masks and IoUs."""
    torch.manual_seed(3)
    images = torch.randint(0, 256, (2, 3, SMALL.image_size, SMALL.image_size), dtype=torch.uint8)
    embeddings = sam.encode(sam.normalize(images, torch.tensor([[80, 80], [60, 80]])))
    picture = torch.arange(len(prompts.labels)) % 2
    rounds = [sam.decode(embeddings, picture, prompts, multimask) for multimask in (True, False)]
    return [tensor for prediction in rounds for tensor in (prediction.masks, prediction.iou)]


@pytest.fixture
def sam() -> Sam:
    torch.manual_seed(0)
    return Sam(SMALL)


def test_every_parameter_gets_a_finite_gradient_whatever_the_prompts(sam: Sam) -> None:
    """One graph for all: also when no object has a mask, a point or a box."""
    nothing = make_prompts(3)
    nothing.labels.fill_(MASKED)
    nothing.has_mask.fill_(False)
    nothing.masks.fill_(float("nan"))
    nothing.points.fill_(float("nan"))
    for prompts in (make_prompts(3), nothing):
        sam.zero_grad(set_to_none=True)
        sum(out.float().square().mean() for out in rollout(sam, prompts)).backward()
        assert [name for name, p in sam.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_bfloat16_weights_keep_positions_exact(sam: Sam) -> None:
    exact = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.clone()
    expected = rollout(sam, make_prompts(3))
    sam.bfloat16()
    kept = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    assert kept.dtype == torch.float32
    assert torch.equal(kept, exact)
    for out, reference in zip(rollout(sam, make_prompts(3)), expected, strict=True):
        assert out.dtype == torch.bfloat16
        assert (out.float() - reference).std() < 0.1 * reference.std()  # a few hundred roundings of 2**-9


def test_autocast_trains(sam: Sam) -> None:
    expected = rollout(sam, make_prompts(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = rollout(sam, make_prompts(3))
    for out, reference in zip(outputs, expected, strict=True):
        assert (out.float() - reference).std() < 0.1 * reference.std()
    sum(out.float().square().mean() for out in outputs).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in sam.parameters())


def test_objects_do_not_see_each_other(sam: Sam) -> None:
    prompts = make_prompts(4)
    embeddings = torch.randn(2, SMALL.prompt_dim, SMALL.grid_size, SMALL.grid_size)
    picture = torch.tensor([0, 0, 1, 1])
    together = sam.decode(embeddings, picture, prompts, True)
    third = Prompts(prompts.points[2:3], prompts.labels[2:3], prompts.masks[2:3], prompts.has_mask[2:3])
    alone = sam.decode(embeddings[1:], torch.zeros(1, dtype=torch.int64), third, True)
    assert_close(together.masks[2:3], alone.masks, rtol=1e-5, atol=1e-5)


def test_no_objects_is_no_special_case(sam: Sam) -> None:
    masks, iou, _, _ = rollout(sam, make_prompts(0))
    assert masks.shape == (0, 3, 4 * SMALL.grid_size, 4 * SMALL.grid_size)
    assert iou.shape == (0, 3)


def test_a_crop_is_encoded_as_the_part_of_the_input_it_is() -> None:
    """Where no attention and no convolution reaches beyond the crop, it makes no difference that there is one."""
    sam = Sam(replace(SMALL, global_blocks=(), depth=2))
    nn.init.normal_(sam.image_encoder.pos_embed)
    images = torch.randn(1, 3, SMALL.image_size, SMALL.image_size)
    whole = sam.encode(images)
    crop = sam.encode(images[..., 32:64, :32], origin=torch.tensor([0, 4]))  # 4 x 4 tokens are a window
    assert_close(crop[..., 1:-1, :-1], whole[..., 5:7, :3], rtol=1e-5, atol=1e-5)  # the neck sees one token around


def test_relative_positions_of_a_crop_are_those_of_its_distances() -> None:
    table = torch.arange(-9.0, 10.0)[:, None]  # 10 tokens
    assert distances(table, 4).flatten().tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert distances(table, 10) is table or torch.equal(distances(table, 10), table)


def test_prompts_of_a_crop_are_placed_in_the_whole(sam: Sam) -> None:
    generator = torch.Generator().manual_seed(0)
    side, origin = 4, torch.tensor([3, 5])
    points = torch.rand(2, 2, 2, generator=generator) * side * SMALL.patch_size
    inside = Prompts(
        points, torch.tensor([[1, -1], [0, -1]]), torch.zeros(2, 1, 4 * side, 4 * side), torch.zeros(2) > 0
    )
    whole = replace(make_prompts(2), points=points + origin * SMALL.patch_size, labels=inside.labels)
    tokens, dense, positions = sam.prompt_encoder(inside, origin)
    all_tokens, _, all_positions = sam.prompt_encoder(whole)
    assert_close(tokens, all_tokens, rtol=1e-5, atol=1e-5)
    assert dense.shape == (2, side * side, SMALL.prompt_dim)
    grid = all_positions.view(SMALL.grid_size, SMALL.grid_size, -1)[5 : 5 + side, 3 : 3 + side]
    assert_close(positions, grid.flatten(0, 1), rtol=1e-5, atol=1e-5)


def test_drop_path_drops_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25)
    out = layer(torch.ones(4000, 2, 2))
    values = out.flatten(1)
    assert_close(values.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert (values == values[:, :1]).all()
    assert abs(out.mean().item() - 1) < 0.03  # four standard deviations of the mean of 4000 samples
    assert torch.equal(layer.eval()(torch.ones(2, 2)), torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"drop_path must lie in \[0, 1\)"):
        DropPath(1.0)


def test_drop_path_rises_to_the_last_block() -> None:
    sam = build_sam(ModelConfig(preset="tiny", drop_path=0.1))
    rates = [block.drop_path.rate for block in sam.image_encoder.blocks]
    assert_close(rates, [0.1 * i / (len(rates) - 1) for i in range(len(rates))])
    assert len(rates) > 2


def test_fresh_weights() -> None:
    sam = build_sam(ModelConfig(preset="tiny"))
    encoder = sam.image_encoder
    assert 0.015 < encoder.pos_embed.std().item() < 0.025
    assert all(block.attn.rel_pos_h.abs().max() == 0 for block in encoder.blocks)


def test_init_loads_and_names_what_does_not_fit(tmp_path) -> None:
    source = build_sam(ModelConfig(preset="tiny"))
    save_weights(source.state_dict(), tmp_path / "tiny.safetensors")
    loaded = build_sam(ModelConfig(preset="tiny", init=str(tmp_path / "tiny.safetensors")))
    assert_close(loaded.state_dict(), source.state_dict(), rtol=0, atol=0)
    save_weights(Sam(SMALL).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other.pth holds the weights of another model: .* names are missing"):
        build_sam(ModelConfig(preset="tiny", init=str(tmp_path / "other.pth")))


def test_presets_are_checked() -> None:
    with pytest.raises(UserError, match="did you mean vit_b"):
        build_sam(ModelConfig(preset="vit-b"))
    with pytest.raises(UserError, match="not a multiple of patch_size 16"):
        SamConfig(embed_dim=64, depth=1, num_heads=1, global_blocks=(), image_size=250)
    assert PRESETS["tiny"].grid_size == 64


def test_a_positive_click_moves_the_answer(sam: Sam) -> None:
    """A prompt's place reaches the masks: two clicks, two answers."""
    prompts = make_prompts(2, slots=1)
    prompts.labels.fill_(POSITIVE)
    prompts.has_mask.fill_(False)
    embeddings = torch.randn(1, SMALL.prompt_dim, SMALL.grid_size, SMALL.grid_size)
    masks = sam.decode(embeddings, torch.zeros(2, dtype=torch.int64), prompts, False).masks
    assert (masks[0] - masks[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("prior", "near"), [(0.0, False), (5.0, True)])
def test_with_the_prior_a_click_attends_to_its_own_place(prior: float, near: bool) -> None:
    torch.manual_seed(0)
    sam = build_sam(ModelConfig(preset="tiny", position_prior=prior))
    positions = sam.prompt_encoder.pe_layer.grid(64, 0, 64)  # [64 * 64, D]
    attention = sam.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    q, k = (projection(positions).unflatten(1, (4, -1)) for projection in (attention.q_proj, attention.k_proj))
    clicked = torch.arange(0, 64 * 64, 97)
    scores = torch.einsum("chd,nhd->hcn", q[clicked], k)
    best = scores.sum(0).argmax(1)
    distance = torch.stack([best // 64 - clicked // 64, best % 64 - clicked % 64]).abs().amax(0)  # cells
    assert bool((distance <= 1).float().mean() > 0.8) == near
