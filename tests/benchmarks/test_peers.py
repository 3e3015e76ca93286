"""The peers of bench_peer_training are SAMs of our sizes: as many weights, and the same face, trained all over."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import pytest
import torch

from sam_ds.modeling.presets import PRESETS
from sam_ds.modeling.sam import Sam

CONFIG = dataclasses.replace(PRESETS["tiny"], image_size=64, embed_dim=32, depth=2, global_blocks=(1,))
PACKAGES = {"segment-anything": "segment_anything", "transformers": "transformers"}


def peer(name: str, bf16: tuple[str, ...] = ()) -> Any:
    if (
        importlib.util.find_spec(PACKAGES[name]) is None
    ):  # importing segment_anything needs torchvision, or our stand-in
        pytest.skip(f"{name} is not installed")
    from peer_models import PEERS

    torch.manual_seed(0)
    return PEERS[name](dataclasses.asdict(CONFIG), bf16)


@pytest.mark.parametrize("name", PACKAGES)
def test_as_many_weights_as_ours(name: str, on_path: None) -> None:
    ours = sum(p.numel() for p in Sam(CONFIG).parameters())
    assert sum(p.numel() for p in peer(name).parameters() if p.requires_grad) == ours


@pytest.mark.parametrize("bf16", [(), ("encoder", "decoder")])
@pytest.mark.parametrize("name", PACKAGES)
def test_points_boxes_and_masks_reach_the_encoder(name: str, bf16: tuple[str, ...], on_path: None) -> None:
    model, grid = peer(name, bf16), CONFIG.grid_size
    encoded = model.encode(torch.randn(2, 3, 64, 64))
    assert len(encoded) == 2
    points, labels = torch.rand(5, 2, 2) * 64, torch.tensor([[1.0, 0.0]] * 4 + [[1.0, -1.0]])
    boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0]]).repeat(5, 1)
    first, scores = model.decode(encoded[0], None, points, labels, None, True)
    assert first.shape == (5, 3, 4 * grid, 4 * grid) and scores.shape == (5, 3)
    second, scores = model.decode(encoded[1], boxes, points, labels, first[:, :1].float(), False)
    assert second.shape == (5, 1, 4 * grid, 4 * grid) and scores.shape == (5, 1)
    (first.float().square().mean() + second.float().square().mean() + scores.float().sum()).backward()
    without = [key for key, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # What these prompts do not read, the token for no mask say, has none.
    assert not any("image_encoder" in key or "vision_encoder" in key for key in without), without
    assert not any("mask_downscaling" in key or "mask_embed.conv" in key for key in without), without


def test_the_same_inputs_give_each_object_its_own_mask(on_path: None) -> None:
    """Every object is a picture of its own to transformers: its embedding is repeated, its prompts are not mixed."""
    model = peer("transformers")
    (encoded,) = model.encode(torch.randn(1, 3, 64, 64))
    points, labels = torch.rand(3, 1, 2) * 64, torch.ones(3, 1)
    together, _ = model.decode(encoded, None, points, labels, None, True)
    for i in range(3):
        alone, _ = model.decode(encoded, None, points[i : i + 1], labels[i : i + 1], None, True)
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-4, atol=1e-5)
