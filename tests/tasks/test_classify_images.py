"""What classification does with a batch: mixed pictures, mixed targets, and the loss of both."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from sam_ds.config.schema import ClassifyConfig, ModelConfig, Recipe
from sam_ds.modeling.plain_vit import normalize
from sam_ds.prompts.draws import object_keys
from sam_ds.tasks.classify_images import ClassifyImages
from sam_ds.tasks.mixing import mix
from sam_ds.types import PictureBatch

CLASSES = 5
BATCH = 64


def task(**classify: float) -> ClassifyImages:
    torch.manual_seed(0)
    config = ClassifyConfig(num_classes=CLASSES, **classify)
    return ClassifyImages(Recipe("x", "classify_images", model=ModelConfig(preset="vit_tiny"), classify=config))


def batch(count: int, first: int = 0) -> PictureBatch:
    places = torch.arange(first, first + count)
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 3, 128, 128), dtype=torch.uint8, generator=generator)
    return PictureBatch(images, places % CLASSES, places, places)


def keys(count: int) -> torch.Tensor:
    return object_keys(0, torch.arange(count), torch.zeros(count, dtype=torch.int64))


def test_without_mixing_pictures_are_their_own() -> None:
    inputs = task().prepare(batch(3), 0)
    assert torch.equal(inputs.images, normalize(batch(3).images)) and torch.equal(inputs.own, torch.ones(3))


def test_mixup_is_a_mean_with_the_picture_before() -> None:
    images = torch.rand(BATCH, 3, 16, 16)
    mixed, own = mix(images, keys(BATCH), ClassifyConfig(mixup=0.8))
    for place in range(BATCH):
        expected = own[place] * images[place] + (1 - own[place]) * images[place - 1]
        torch.testing.assert_close(mixed[place], expected)
    assert 0.0 < own.min() < 0.1 and 0.9 < own.max() < 1.0


def test_cutmix_puts_a_square_of_the_picture_before_and_counts_its_pixels() -> None:
    images = torch.arange(BATCH).float().view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    mixed, own = mix(images, keys(BATCH), ClassifyConfig(cutmix=1.0))
    for place in range(BATCH):
        kept, other = (mixed[place, 0] == number % BATCH for number in (place, place - 1))
        assert bool((kept | other).all()) and torch.equal(mixed[place, 0], mixed[place, 2])
        assert float(kept.float().mean()) == pytest.approx(float(own[place]), abs=1e-6)
        rows, columns = other.any(1), other.any(0)
        assert torch.equal(other, rows[:, None] & columns[None, :])  # one rectangle
    assert own.min() < 0.3 and own.max() > 0.9


def test_both_kinds_are_about_as_frequent() -> None:
    images = torch.arange(1000).float().view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    mixed, _ = mix(images, keys(1000), ClassifyConfig(mixup=0.8, cutmix=1.0))
    whole = (mixed == images) | (mixed == images.roll(1, 0))
    assert 420 < int(whole.flatten(1).all(1).sum()) < 580  # 5 standard deviations of 1000 throws


def test_what_is_drawn_for_a_picture_does_not_hang_on_its_batch() -> None:
    whole = task(mixup=0.8, cutmix=1.0).prepare(batch(8), 0)
    later = task(mixup=0.8, cutmix=1.0).prepare(batch(3, first=5), 7)
    assert torch.equal(whole.own[5:], later.own)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_with_the_mixed_target(smoothing: float) -> None:
    model = task(mixup=0.8, cutmix=1.0, label_smoothing=smoothing).eval()
    inputs = model.prepare(batch(6), 0)
    loss, logs = model(inputs, torch.tensor(6.0))
    hot = F.one_hot(inputs.labels, CLASSES), F.one_hot(inputs.others, CLASSES)
    target = inputs.own[:, None] * hot[0] + (1 - inputs.own[:, None]) * hot[1]
    target = (1 - smoothing) * target + smoothing / CLASSES
    logits = model.model(inputs.images)
    torch.testing.assert_close(loss, F.cross_entropy(logits, target))
    assert float(logs["accuracy"]) == pytest.approx(float((logits.argmax(1) == target.argmax(1)).float().mean()))


def test_a_frozen_encoder_leaves_the_head() -> None:
    frozen = task()
    frozen.encoder.requires_grad_(False)
    assert [name for name, p in frozen.named_parameters() if p.requires_grad] == [
        "model.head.weight",
        "model.head.bias",
    ]


def test_layers_count_from_the_embedding_to_the_head() -> None:
    model = task()
    assert model.num_layers == 5
    layers = {name: model.layer_of(f"model.{name}") for name in ("pos_embed", "cls_token", "patch_embed.proj.bias")}
    assert set(layers.values()) == {0}
    assert model.layer_of("model.blocks.3.mlp.fc1.weight") == 4
    assert model.layer_of("model.norm.weight") is model.layer_of("model.head.weight") is None


def test_positions_that_are_equal_are_mixed_equally() -> None:
    inputs = task(mixup=1.0).prepare(batch(4), 0)
    again = task(mixup=1.0).prepare(dataclasses.replace(batch(4), sample_ids=torch.full((4,), 9)), 3)
    assert torch.equal(inputs.images, again.images)
