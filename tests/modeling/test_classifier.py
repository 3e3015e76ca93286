"""The classifier: what it pools, what it starts from, and its trunk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from sam_ds.config.errors import UserError
from sam_ds.config.schema import ClassifyConfig, MaeConfig, ModelConfig
from sam_ds.modeling.classifier import Classifier
from sam_ds.modeling.convert import save_weights
from sam_ds.modeling.presets import build_classifier, build_mae, vit_config

TINY = ModelConfig(preset="vit_tiny")


def build(model: ModelConfig = TINY, num_classes: int = 7) -> Classifier:
    torch.manual_seed(1)
    return build_classifier(model, ClassifyConfig(num_classes=num_classes)).eval()


def test_a_picture_is_the_mean_of_its_patches() -> None:
    model, images = build(), torch.randn(3, 3, 128, 128)
    tokens = model.encode(images)
    assert tokens.shape == (3, 1 + 16 * 16, 128)
    expected = tokens[:, 1:].mean(1) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(images), expected)


def test_every_parameter_gets_a_gradient() -> None:
    model = build()
    model(torch.randn(2, 3, 128, 128)).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


def test_its_trunk_is_all_of_it_but_the_head() -> None:
    model = build()
    model.trunk().requires_grad_(False).eval()
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        "head.weight",
        "head.bias",
    }


def test_it_starts_from_a_masked_autoencoder(tmp_path: Path) -> None:
    torch.manual_seed(5)
    mae = build_mae(TINY, MaeConfig())
    save_weights(mae.state_dict(), tmp_path / "mae.safetensors")
    started, fresh = build(ModelConfig(preset="vit_tiny", init=str(tmp_path / "mae.safetensors"))), build()
    given = mae.state_dict()
    for name, value in started.state_dict().items():
        expected = fresh.state_dict()[name] if name.startswith("head.") else given[name]
        assert torch.equal(value, expected), name
    images = torch.randn(2, 3, 128, 128)
    torch.testing.assert_close(started.encode(images), mae.eval().encode(images))


def test_a_head_for_other_classes_starts_anew(tmp_path: Path) -> None:
    save_weights(build(num_classes=9).state_dict(), tmp_path / "nine.safetensors")
    started = build(ModelConfig(preset="vit_tiny", init=str(tmp_path / "nine.safetensors")))
    assert started.head.weight.shape == (7, 128)
    assert torch.equal(started.head.weight, build().head.weight)


def test_weights_of_another_size_are_refused_in_one_line(tmp_path: Path) -> None:
    wide = Classifier(dataclasses.replace(vit_config("vit_tiny"), dim=64), 7)
    save_weights(wide.state_dict(), tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match="holds a ViT of width 64 and depth 4") as error:
        build(ModelConfig(preset="vit_tiny", init=str(tmp_path / "wide.safetensors")))
    assert "\n" not in str(error.value)
