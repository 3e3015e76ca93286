"""Our masked autoencoder computes what transformers' does: same weights and mask, same loss, answers and gradients."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sam_ds.config.errors import UserError
from sam_ds.config.schema import MaeConfig
from sam_ds.modeling.mae import Mae, Patches
from sam_ds.modeling.plain_vit import sincos_positions
from sam_ds.modeling.presets import VIT_PRESETS, VitConfig
from sam_ds.tasks.pretrain_mae import MaeInputs, patch_order, picture_losses

# Small, but with several heads, a decoder of another width, and patches of the releases' two sizes.
SIZES = {
    16: VitConfig(48, 3, 3, image_size=64, patch_size=16, decoder_dim=32, decoder_depth=2, decoder_heads=4),
    14: VitConfig(48, 3, 3, image_size=70, patch_size=14, decoder_dim=32, decoder_depth=2, decoder_heads=4),
}
# Names in transformers, by those of MAE's release.
_NAMES = (
    (r"^patch_embed\.proj", "vit.embeddings.patch_embeddings.projection"),
    (r"^cls_token", "vit.embeddings.cls_token"),
    (r"^pos_embed", "vit.embeddings.position_embeddings"),
    (r"^blocks\.", "vit.layers."),
    (r"^norm\.", "vit.layernorm."),
    (r"^decoder_blocks\.", "decoder.decoder_layers."),
    (r"^(mask_token|decoder_\w+)", r"decoder.\1"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
)


def theirs_from(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names of transformers, which keeps queries, keys and values apart."""
    renamed: dict[str, Tensor] = {}
    for own, tensor in ours.items():
        name = own
        for pattern, other in _NAMES:
            name = re.sub(pattern, other, name)
        if ".attn.qkv." in name:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            renamed |= {name.replace(".attn.qkv.", f".attention.{part}_proj."): third for part, third in parts}
        else:
            renamed[name] = tensor
    return renamed


def reference(config: VitConfig, mae: MaeConfig) -> nn.Module:
    vit_mae = pytest.importorskip("transformers.models.vit_mae", reason="transformers is not installed")
    settings = vit_mae.ViTMAEConfig(
        hidden_size=config.dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        intermediate_size=4 * config.dim,
        layer_norm_eps=1e-6,
        image_size=config.image_size,
        patch_size=config.patch_size,
        decoder_hidden_size=config.decoder_dim,
        decoder_num_hidden_layers=config.decoder_depth,
        decoder_num_attention_heads=config.decoder_heads,
        decoder_intermediate_size=4 * config.decoder_dim,
        mask_ratio=mae.mask_ratio,
        norm_pix_loss=mae.normalize_pixels,
    )
    return vit_mae.ViTMAEForPreTraining(settings)


@pytest.mark.parametrize("normalize_pixels", [True, False])
@pytest.mark.parametrize("patch", SIZES)
def test_loss_answers_and_gradients(patch: int, normalize_pixels: bool) -> None:
    torch.manual_seed(0)
    config, mae = SIZES[patch], MaeConfig(0.75, normalize_pixels)
    ours, theirs = Mae(config, mae), reference(config, mae)
    with torch.no_grad():
        for parameter in ours.parameters():  # norms and biases too
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    theirs.load_state_dict(theirs_from(ours.state_dict()))
    images = torch.randn(3, 3, config.image_size, config.image_size)
    noise = torch.rand(3, config.grid_size**2)
    whole = ours.patches.cells(torch.zeros(3, 2))
    inputs = MaeInputs(images, noise.argsort(1), whole)
    predictions = ours(inputs.images, inputs.order, inputs.cells)
    loss = picture_losses(ours.patches, inputs, predictions).mean()
    answer = theirs(images, noise=noise)
    assert_close(loss, answer.loss, rtol=1e-5, atol=1e-5)
    masked = inputs.order[:, ours.patches.num_seen :, None].expand_as(predictions)
    assert int(answer.mask.sum()) == 3 * masked.shape[1]
    assert_close(predictions, answer.logits.gather(1, masked), rtol=1e-5, atol=1e-5)
    loss.backward(), answer.loss.backward()
    own = theirs_from({name: parameter.grad for name, parameter in ours.named_parameters()})
    other = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    assert_close(own, other, rtol=1e-5, atol=1e-5)
    assert all(bool((gradient != 0).any()) for gradient in own.values())


def test_fixed_positions_are_those_of_the_release() -> None:
    embeddings = reference(SIZES[16], MaeConfig()).vit.embeddings
    theirs = type(embeddings)(embeddings.config)  # of a whole model, they are only filled in by from_pretrained
    theirs.initialize_weights()
    ours = sincos_positions(SIZES[16].dim, SIZES[16].grid_size)
    assert_close(ours, theirs.position_embeddings.data, rtol=0, atol=1e-6)


def test_names_are_those_of_the_release() -> None:
    """As read in its code: a ViT of 12 blocks and a decoder of 8."""
    block = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    layers = [
        f"{blocks}.{i}.{part}"
        for blocks, n in (("blocks", 12), ("decoder_blocks", 8))
        for i in range(n)
        for part in block
    ]
    layers += ["patch_embed.proj", "norm", "decoder_embed", "decoder_norm", "decoder_pred"]
    names = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    names |= {"cls_token", "pos_embed", "mask_token", "decoder_pos_embed"}
    with torch.device("meta"):
        mae = Mae(VIT_PRESETS["vit_b16"], MaeConfig())
    state = mae.state_dict()
    assert set(state) == names
    assert state["pos_embed"].shape == (1, 197, 768) and state["decoder_pos_embed"].shape == (1, 197, 512)
    assert state["decoder_pred.weight"].shape == (768, 512)


@pytest.mark.parametrize(
    ("preset", "millions"),  # of the encoder: MAE's table, and Meta-SAM-Large's 1.2 billion
    [("vit_b16", 86), ("vit_l16", 303), ("vit_h14", 631), ("vit_meta_sam_large", 1200)],
)
def test_sizes(preset: str, millions: int) -> None:
    with torch.device("meta"):
        mae = Mae(VIT_PRESETS[preset], MaeConfig())
    encoder = sum(p.numel() for name, p in mae.named_parameters() if not name.startswith(("decoder", "mask_token")))
    assert encoder / 1e6 == pytest.approx(millions, rel=0.01)


def test_patches_are_cut_and_joined() -> None:
    patches = Patches(SIZES[14], MaeConfig())
    images = torch.randn(2, 3, 70, 70)
    cut = patches.cut(images)
    assert cut.shape == (2, 25, 14 * 14 * 3)
    assert_close(patches.joined(cut), images, rtol=0, atol=0)
    assert_close(cut[1, 7].unflatten(0, (14, 14, 3)).permute(2, 0, 1), images[1, :, 14:28, 28:42], rtol=0, atol=0)


@pytest.mark.parametrize("normalize_pixels", [True, False])
def test_perfect_predictions_paint_the_picture(normalize_pixels: bool) -> None:
    patches = Patches(SIZES[16], MaeConfig(0.75, normalize_pixels))
    images, order = torch.randn(2, 3, 64, 64), patch_order(0, torch.tensor([5, 6]), 16)
    painted = patches.painted(images, order, patches.targets(images, order))
    assert_close(painted, images, rtol=1e-5, atol=1e-5)
    black = patches.painted(images, order, torch.zeros(2, 12, 768))
    hidden = patches.hidden(order)
    assert hidden.float().mean() == 0.75
    assert bool((black == images)[~hidden].all()) and not bool((black == images)[hidden].any())


def test_what_is_masked_hangs_on_the_seed_and_the_place_alone() -> None:
    places = torch.tensor([3, 11, 4_000_000_000])
    orders = patch_order(7, places, 196)
    assert_close(orders.sort(1).values, torch.arange(196).expand(3, -1), rtol=0, atol=0)
    for place, order in zip(places, orders, strict=True):
        assert_close(patch_order(7, place[None], 196)[0], order, rtol=0, atol=0)
        assert not torch.equal(patch_order(8, place[None], 196)[0], order)
    seen = (
        torch.stack([patch_order(7, torch.arange(4096), 16)[:, :4] == patch for patch in range(16)])
        .float()
        .mean((1, 2))
    )
    assert_close(seen, torch.full((16,), 1 / 16), rtol=0, atol=0.01)  # 4 deviations of 16,384 draws


def test_crops_lie_anywhere_in_the_input() -> None:
    config = dataclasses.replace(SIZES[16], image_size=96)  # a grid of 6, and crops of 4 patches
    patches = Patches(config, MaeConfig(), crop_size=64)
    draws = torch.tensor([[0.0, 0.0], [0.999, 0.0], [0.4, 0.999]])  # of 3 places across and down
    cells = patches.cells(draws)
    first = torch.tensor([0, 2, 13])
    square = torch.arange(4)[:, None] * 6 + torch.arange(4)
    assert_close(cells, first[:, None] + square.flatten(), rtol=0, atol=0)
    drawn = {int(patches.cells(torch.rand(1, 2))[0, 0]) for _ in range(200)}
    assert drawn == {0, 1, 2, 6, 7, 8, 12, 13, 14}


def test_a_crop_is_a_part_of_the_input() -> None:
    """Seen whole, a picture that covers a part of the input has the answers of one with the positions of that part."""
    torch.manual_seed(0)
    config = dataclasses.replace(SIZES[16], image_size=96)
    model = Mae(config, MaeConfig(), crop_size=64)
    small = Mae(SIZES[16], MaeConfig())  # 64 pixels
    cells = model.patches.cells(torch.tensor([[0.4, 0.999]] * 2))
    state = model.state_dict()
    for name in ("pos_embed", "decoder_pos_embed"):
        state[name] = torch.cat([state[name][:, :1], state[name][:, 1 + cells[0]]], dim=1)
    small.load_state_dict(state)
    images, order = torch.randn(2, 3, 64, 64), patch_order(0, torch.tensor([3, 4]), 16)
    assert_close(model(images, order, cells), small(images, order), rtol=1e-5, atol=1e-6)
    elsewhere = model(images, order, model.patches.cells(torch.zeros(2, 2)))
    assert not torch.allclose(elsewhere, small(images, order), atol=1e-3)


@pytest.mark.parametrize("side", [50, 128])
def test_a_crop_that_does_not_fit(side: int) -> None:
    with pytest.raises(UserError, match=rf"data\.crop_size={side}: must be a multiple of .* at most its input \(64"):
        Patches(SIZES[16], MaeConfig(), crop_size=side)


def test_a_ratio_that_masks_everything() -> None:
    with pytest.raises(UserError, match=r"mae\.mask_ratio=0\.97 leaves none of 16 patches to see"):
        Patches(SIZES[16], MaeConfig(0.97))
