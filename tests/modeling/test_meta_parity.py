"""Our Sam computes what Meta's does: same weights, same outputs and gradients to float32 rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sam_ds.config.schema import ModelConfig
from sam_ds.modeling.convert import load_weights, save_weights
from sam_ds.modeling.presets import PRESETS, SamConfig
from sam_ds.modeling.sam import Sam
from sam_ds.types import BOTTOM_RIGHT, MASKED, NEGATIVE, PAD, POSITIVE, TOP_LEFT, Prompts

from .conftest import SMALL, gradients

Pair = tuple[Sam, nn.Module]


def make_prompts(labels: list[list[int]], masks: bool) -> Prompts:
    """Random points (and masks) under the given labels."""
    generator = torch.Generator().manual_seed(1)
    objects, side = len(labels), 4 * SMALL.grid_size
    return Prompts(
        points=torch.rand(objects, len(labels[0]), 2, generator=generator) * SMALL.image_size,
        labels=torch.tensor(labels),
        masks=torch.randn(objects, 1, side, side, generator=generator) * 4,
        has_mask=torch.full((objects,), masks),
    )


def meta_decode(theirs: nn.Module, embeddings: Tensor, picture: Tensor, prompts: Prompts, multimask: bool):
    """Meta's prompt encoder and decoder, which take one picture at a time."""
    masks, iou = [], []
    for index in range(len(embeddings)):
        own = picture == index
        points, labels = prompts.points[own], prompts.labels[own]
        is_box = bool((labels == TOP_LEFT).any())
        boxes = points[:, -2:].flatten(1) if is_box else None
        if is_box:
            points, labels = points[:, :-2], labels[:, :-2]
        elif bool((labels[:, -1] == PAD).all()):  # Meta appends this slot itself
            points, labels = points[:, :-1], labels[:, :-1]
        sparse, dense = theirs.prompt_encoder(
            points=(points, labels) if points.shape[1] else None,
            boxes=boxes,
            masks=prompts.masks[own] if bool(prompts.has_mask.any()) else None,
        )
        low, quality = theirs.mask_decoder(
            image_embeddings=embeddings[index : index + 1],
            image_pe=theirs.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )
        masks.append(low)
        iou.append(quality)
    return torch.cat(masks), torch.cat(iou)


def test_encoder_and_its_gradients(pair: Pair) -> None:
    ours, theirs = pair
    images = torch.randn(2, 3, SMALL.image_size, SMALL.image_size)
    ours.train(), theirs.train()
    a, b = ours.encode(images), theirs.image_encoder(images)
    assert_close(a, b, rtol=1e-5, atol=1e-5)
    a.square().mean().backward()
    b.square().mean().backward()
    assert_close(gradients(ours.image_encoder), gradients(theirs.image_encoder), rtol=1e-4, atol=1e-5)


CASES = {
    "points": ([[POSITIVE, NEGATIVE, PAD], [NEGATIVE, POSITIVE, PAD], [POSITIVE, POSITIVE, PAD]], False),
    "points and mask": ([[POSITIVE, PAD], [NEGATIVE, PAD], [POSITIVE, PAD]], True),
    "box": ([[TOP_LEFT, BOTTOM_RIGHT]] * 3, False),
    "point, box and mask": ([[POSITIVE, TOP_LEFT, BOTTOM_RIGHT]] * 3, True),
}


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_decode_and_its_gradients(pair: Pair, case: str, multimask: bool) -> None:
    ours, theirs = pair
    prompts = make_prompts(*CASES[case])
    picture = torch.tensor([0, 1, 1])
    embeddings = torch.randn(2, SMALL.prompt_dim, SMALL.grid_size, SMALL.grid_size)
    leaves = [embeddings.clone().requires_grad_() for _ in range(2)]
    prediction = ours.decode(leaves[0], picture, prompts, multimask)
    masks, iou = meta_decode(theirs, leaves[1], picture, prompts, multimask)
    assert_close(prediction.masks, masks, rtol=1e-5, atol=1e-5)
    assert_close(prediction.iou, iou, rtol=1e-5, atol=1e-5)
    (prediction.masks.square().mean() + prediction.iou.square().mean()).backward()
    (masks.square().mean() + iou.square().mean()).backward()
    assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-4, atol=1e-5)
    assert_close(gradients(ours), gradients(theirs), rtol=1e-4, atol=1e-5)


def test_masked_slots_count_for_nothing(pair: Pair) -> None:
    """Slots that are MASKED change no answer, wherever they stand and whatever they hold; nor does the order."""
    ours, _ = pair
    embeddings = torch.randn(1, SMALL.prompt_dim, SMALL.grid_size, SMALL.grid_size)
    picture = torch.zeros(2, dtype=torch.int64)
    short = make_prompts([[POSITIVE, NEGATIVE, PAD], [NEGATIVE, POSITIVE, PAD]], masks=True)
    points = torch.full((2, 5, 2), float("nan"))
    labels = torch.full((2, 5), MASKED)
    points[:, [4, 0, 2]], labels[:, [4, 0, 2]] = short.points, short.labels
    long = Prompts(points, labels, short.masks, short.has_mask)
    for multimask in (False, True):
        a = ours.decode(embeddings, picture, short, multimask)
        b = ours.decode(embeddings, picture, long, multimask)
        assert_close(a.masks, b.masks, rtol=1e-5, atol=1e-5)
        assert_close(a.iou, b.iou, rtol=1e-5, atol=1e-5)


def test_normalize_pads_after_standardising(pair: Pair) -> None:
    ours, theirs = pair
    images = torch.randint(0, 256, (2, 3, SMALL.image_size, SMALL.image_size), dtype=torch.uint8)
    sizes = torch.tensor([[80, 50], [33, 80]], dtype=torch.int32)
    expected = [
        theirs.preprocess(image[:, :h, :w].float()) for image, (h, w) in zip(images, sizes.tolist(), strict=True)
    ]
    assert_close(ours.normalize(images, sizes), torch.stack(expected))


@pytest.mark.parametrize(("preset", "keys"), [("vit_b", 314), ("vit_l", 482), ("vit_h", 594)])
def test_names_and_shapes_are_those_of_the_released_files(
    meta_sam: Callable[[SamConfig], nn.Module], preset: str, keys: int
) -> None:
    with torch.device("meta"):
        ours, theirs = Sam(PRESETS[preset]), meta_sam(PRESETS[preset])
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert len(shapes) == keys


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_load_strictly_both_ways(pair: Pair, tmp_path, suffix: str) -> None:
    ours, theirs = pair
    path = tmp_path / f"weights{suffix}"
    save_weights(theirs.state_dict(), path)
    fresh = Sam(SMALL)
    load_weights(fresh, path)
    assert_close(fresh.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    if suffix == ".pth":
        save_weights(ours.state_dict(), path)
        theirs.load_state_dict(torch.load(path, weights_only=True), strict=True)


def test_meta_sam_large_has_its_1_2_billion() -> None:
    with torch.device("meta"):
        sam = Sam(PRESETS["meta_sam_large"], drop_path=ModelConfig().drop_path)
    assert 1.15e9 < sum(parameter.numel() for parameter in sam.parameters()) < 1.25e9
