"""The feature pyramid and what is built on it."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch

from sam_ds.config.schema import ClassesConfig, DetectConfig, ModelConfig, Recipe
from sam_ds.losses.detection import detection_loss
from sam_ds.modeling.convert import save_weights
from sam_ds.modeling.detector import build_detector
from sam_ds.modeling.feature_pyramid import FeaturePyramid
from sam_ds.modeling.presets import PRESETS, build_sam
from sam_ds.modeling.sam.sam import Sam
from sam_ds.modeling.segmenter import build_segmenter
from sam_ds.tasks.detect_objects import DetectObjects
from sam_ds.training.detect_objects import DetectObjectsKit
from sam_ds.training.segment_classes import SegmentClassesKit

DETECT = DetectConfig(num_classes=3, num_queries=10, decoder_layers=2)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    monkeypatch.setitem(PRESETS, "small", dataclasses.replace(PRESETS["tiny"], image_size=64, depth=2))
    return ModelConfig(preset="small")


def test_a_pyramid_has_the_strides_and_layers_of_vitdet() -> None:
    pyramid = FeaturePyramid(32, 16)
    levels = pyramid(torch.randn(2, 8, 8, 32))
    assert [tuple(level.shape) for level in levels] == [(2, 16, side, side) for side in (32, 16, 8, 4)]
    names = [[type(layer).__name__ for layer in level] for level in pyramid.levels.values()]
    up, last = "ConvTranspose2d", ["Conv2d", "ChannelNorm", "Conv2d", "ChannelNorm"]
    assert names == [[up, "ChannelNorm", "GELU", up, *last], [up, *last], last, ["MaxPool2d", *last]]
    assert pyramid.levels["0"][0].weight.shape[:2] == (32, 16)
    assert pyramid.levels["0"][3].weight.shape[:2] == (16, 8)


def test_what_is_built_takes_the_encoder_of_a_sam(small: ModelConfig) -> None:
    """The trunk has SAM's names, so that weights are handed over by them."""
    sam = Sam(PRESETS["small"]).state_dict()
    trunk = {
        name: value.shape for name, value in sam.items() if name.startswith("image_encoder.") and "neck" not in name
    }
    for model in (build_detector(small, DETECT), build_segmenter(small, ClassesConfig(num_classes=4))):
        own = {name: value.shape for name, value in model.state_dict().items() if name.startswith("image_encoder.")}
        assert own == trunk


def test_a_detector_answers_with_every_layer(small: ModelConfig) -> None:
    found = build_detector(small, DETECT)(torch.randn(2, 3, 64, 64))
    assert found.logits.shape == (2, 3, 10, 3)  # the proposals, and two layers
    assert found.boxes.shape == (2, 3, 10, 4)
    assert found.boxes.min() >= 0
    assert found.boxes.max() <= 1
    # Nothing is refined at first: every layer starts where the proposals are.
    torch.testing.assert_close(found.boxes[:, 1], found.boxes[:, 0], atol=1e-4, rtol=0)


def test_boxes_are_as_exact_in_bfloat16(small: ModelConfig) -> None:
    """A coordinate in bfloat16 would be a multiple of 1/256 from a half on."""
    detector = build_detector(small, DETECT).bfloat16()
    torch.nn.init.constant_(detector.head.decoder.bbox_embed[-1].layers[-1].bias, 0.0123)
    found = detector(torch.randn(1, 3, 64, 64))
    assert found.boxes.dtype == found.logits.dtype == torch.float32
    centres = found.boxes[0, -1, :, 0]
    high = centres[centres > 0.5]
    assert len(high)
    assert ((high * 256).frac() > 1e-3).all()


def boxes(count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    places = 0.3 + 0.3 * torch.rand(count, 4, generator=generator)
    return {"class_labels": torch.arange(count) % 3, "boxes": places}


@pytest.mark.parametrize("counts", [(0, 0), (0, 4), (2, 12)])
def test_every_weight_gets_a_gradient_whatever_there_is_to_find(small: ModelConfig, counts: tuple[int, ...]) -> None:
    """A rank without boxes has the same graph; twelve boxes are more than there are queries."""
    detector = build_detector(small, DETECT)
    found = detector(torch.randn(2, 3, 64, 64))
    parts = detection_loss(found.logits, found.boxes, [boxes(count) for count in counts])
    torch.stack(list(parts.values())).sum().backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in detector.parameters())
    assert (parts["box"] == 0) == (sum(counts) == 0)


def test_the_loss_is_a_sum_over_the_boxes(small: ModelConfig) -> None:
    """Two pictures in a batch and apart give the same: a mean over all ranks' boxes can be made of it."""
    found = build_detector(small, DETECT).eval()(torch.randn(2, 3, 64, 64))
    targets = [boxes(1), boxes(3)]
    both = detection_loss(found.logits, found.boxes, targets)
    apart = [detection_loss(found.logits[i : i + 1], found.boxes[i : i + 1], targets[i : i + 1]) for i in range(2)]
    for name, value in both.items():
        torch.testing.assert_close(value, apart[0][name] + apart[1][name], atol=1e-4, rtol=1e-5)


def test_a_box_that_is_not_finite_spoils_the_loss_and_raises_nothing() -> None:
    places = torch.full((1, 1, 5, 4), 0.1)
    places[0, 0, 2, 1] = torch.nan
    parts = detection_loss(torch.zeros(1, 1, 5, 3), places, [boxes(2)])
    assert all(value.isnan() for value in parts.values())


def test_a_box_that_is_found_costs_nothing(small: ModelConfig) -> None:
    truth = boxes(3)
    logits = torch.full((1, 1, 5, 3), -20.0)
    places = torch.full((1, 1, 5, 4), 0.1)
    places[0, 0, :3] = truth["boxes"]
    logits[0, 0, range(3), truth["class_labels"]] = 20.0
    parts = detection_loss(logits, places, [truth])
    assert all(value < 1e-4 for value in parts.values()), parts


def test_a_segmenter_s_logits_are_four_to_a_patch(small: ModelConfig) -> None:
    logits = build_segmenter(small, ClassesConfig(num_classes=4)).bfloat16()(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 4, 32, 32)
    assert logits.dtype == torch.float32


def test_layers_for_layer_wise_learning_rates(small: ModelConfig) -> None:
    task = DetectObjects(Recipe("test", task="detect_objects", model=small, detect=DETECT))
    layers = {name.split(".")[1]: set() for name, _ in task.named_parameters()}
    for name, _ in task.named_parameters():
        layers[name.split(".")[1]].add(task.layer_of(name))
    assert layers == {"image_encoder": {0, 1, 2}, "pyramid": {None}, "head": {None}}
    assert task.num_layers == 3


@pytest.mark.parametrize(("kit", "count"), [(DetectObjectsKit(), 100.0), (SegmentClassesKit(), 2 * 64 * 64.0)])
def test_full_batches_are_as_large_as_they_get(small: ModelConfig, kit: object, count: float) -> None:
    name = "detect_objects" if isinstance(kit, DetectObjectsKit) else "segment_classes"
    recipe = Recipe("test", task=name, model=small)
    batch = kit.full_batch(recipe, 2)
    inputs = kit.build(recipe).prepare(batch, 0)
    assert float(inputs.count) == (2 * count if name == "detect_objects" else count)


def test_the_trunk_starts_from_a_sam_s_and_the_rest_anew(small: ModelConfig, tmp_path: Path) -> None:
    sam = build_sam(small)
    save_weights(sam.state_dict(), tmp_path / "sam.safetensors")
    given = sam.image_encoder.state_dict()
    for build in (partial(build_detector, detect=DETECT), partial(build_segmenter, classes=ClassesConfig(4))):
        model = build(dataclasses.replace(small, init=str(tmp_path / "sam.safetensors")))
        for name, value in model.image_encoder.state_dict().items():
            assert torch.equal(value, given[name]), name
