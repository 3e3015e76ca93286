"""The evaluation of predictors whose scores are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sam_ds.config.errors import UserError
from sam_ds.config.schema import EvalConfig
from sam_ds.evaluation.baseline import DiscBaseline, mean_area_fraction
from sam_ds.evaluation.interactive import OBJECTS_AT_ONCE, evaluate
from sam_ds.evaluation.metrics import EvalSums
from sam_ds.evaluation.pictures import Gallery
from sam_ds.ops.rasterize import rasterize
from sam_ds.types import BOTTOM_RIGHT, MASKED, PAD, POSITIVE, TOP_LEFT, SegmentBatch


@pytest.fixture
def scene(make_batch: Callable[..., SegmentBatch], make_disc: Callable[..., np.ndarray]) -> SegmentBatch:
    """Two pictures at the input's own resolution, one of them with padding."""
    wide = [make_disc(32, 64, 12, 15, 8), make_disc(32, 64, 45, 16, 11)]
    return make_batch([wide, [make_disc(64, 64, 30, 40, 15)]])


def truth_of(batch: SegmentBatch) -> torch.Tensor:
    side = batch.images.shape[-1]
    return rasterize(batch.runs, batch.to_source[batch.picture], (side, side)).bool()


def test_an_oracle_gets_everything_right(scene: SegmentBatch, make_oracle: type) -> None:
    oracle = make_oracle(truth_of(scene))
    metrics = evaluate(oracle, [scene], EvalConfig(), "cpu").metrics()
    assert metrics.pop("masks") == 3
    assert set(metrics.values()) == {1.0}
    assert set(metrics) == set(EvalSums.zero(EvalConfig()).names)


def test_prompts_of_the_clicks_and_the_box(scene: SegmentBatch, make_oracle: type) -> None:
    oracle = make_oracle(truth_of(scene), wrong=True)
    metrics = evaluate(oracle, [scene], EvalConfig(clicks=(1, 3)), "cpu").metrics()
    assert (metrics["miou@1"], metrics["miou@1/oracle"], metrics["miou@3"]) == (0.0, 1.0, 1.0)
    (first, three), (second, one), (third, _), (box, box_multimask) = oracle.calls
    assert (three, one, box_multimask) == (True, False, False)
    assert not first.has_mask.any()
    assert first.labels[0].tolist() == [POSITIVE, MASKED, MASKED, PAD, MASKED]
    assert first.points[0, 0].tolist() == [12, 15]
    # The first answer was empty, so the second click is where the first was, with that answer's logits fed back.
    assert second.has_mask.all() and (second.masks == -1).all()
    assert second.labels[0].tolist() == [POSITIVE, POSITIVE, MASKED, PAD, MASKED]
    assert third.labels[0].tolist() == [POSITIVE, POSITIVE, MASKED, PAD, MASKED]  # nothing was wrong any more
    assert box.labels[0].tolist() == [TOP_LEFT, BOTTOM_RIGHT] and not box.has_mask.any()
    assert box.points[0].tolist() == [[4, 7], [20, 23]]


def test_quality_is_measured_at_the_source_size(
    make_batch: Callable[..., SegmentBatch], make_disc: Callable[..., np.ndarray], make_oracle: type
) -> None:
    # 20 times finer than the input: the input's own raster of the truth is right to about a pixel in radius 16.
    batch = make_batch([[make_disc(1280, 1280, 600, 700, 320)]])
    metrics = evaluate(make_oracle(truth_of(batch)), [batch], EvalConfig(), "cpu").metrics()
    assert 0.97 < metrics["miou@box"] < 0.9999


def test_masks_smaller_than_an_input_pixel_are_clicked_where_they_are(
    make_batch: Callable[..., SegmentBatch], make_oracle: type
) -> None:
    mask = np.zeros((640, 640), bool)
    mask[402, 301] = True
    batch = make_batch([[mask]])
    oracle = make_oracle(truth_of(batch))
    metrics = evaluate(oracle, [batch], EvalConfig(clicks=(1,)), "cpu").metrics()
    assert metrics["masks"] == 1 and metrics["miou@1"] == 0
    assert oracle.calls[0][0].points[0, 0].tolist() == [30, 40]


def test_batches_without_objects_run_and_do_not_count(
    scene: SegmentBatch, make_batch: Callable[..., SegmentBatch], make_oracle: type
) -> None:
    oracle = make_oracle(truth_of(scene))
    config = EvalConfig(clicks=(1, 2), box=False)
    with pytest.raises(UserError, match="no mask"):
        evaluate(oracle, [make_batch([[]])], config, "cpu").metrics()
    assert oracle.calls == []
    # Another rank has two chunks: this one must decode as often.
    sums = evaluate(oracle, [make_batch([[]]), scene], config, "cpu", largest=lambda chunks: 2)
    assert sums.count == 3
    assert len(oracle.calls) == 2 * 2 * 2


def test_many_objects_are_taken_in_chunks(
    make_batch: Callable[..., SegmentBatch], make_disc: Callable[..., np.ndarray]
) -> None:
    masks = [make_disc(64, 64, 10 + i % 40, 20 + i % 20, 6) for i in range(OBJECTS_AT_ONCE + 5)]
    batch = make_batch([masks[:20], masks[20:]])
    disc = DiscBaseline(mean_area_fraction([batch]))
    metrics = evaluate(disc, [batch], EvalConfig(), "cpu").metrics()
    assert metrics["masks"] == OBJECTS_AT_ONCE + 5
    # Every mask is a disc of the mean area, so the baseline is right but for the raster.
    assert metrics["miou@1"] > 0.9 and metrics["miou@box"] > 0.9


@pytest.mark.parametrize("nearest", [False, True])
def test_discs_after_more_clicks(
    make_batch: Callable[..., SegmentBatch], make_disc: Callable[..., np.ndarray], nearest: bool
) -> None:
    # Two discs of the baseline's own size, one mask: the first click finds one, the second the other.
    both = make_disc(64, 64, 16, 32, 11) | make_disc(64, 64, 46, 32, 10)
    fraction = 3.14159 * 10.5**2 / 64**2
    batch = make_batch([[both]])
    metrics = evaluate(DiscBaseline(fraction, nearest), [batch], EvalConfig(clicks=(1, 2)), "cpu").metrics()
    assert 0.4 < metrics["miou@1"] < 0.6
    assert metrics["miou@2"] > 0.85


def test_nearest_click_cuts_the_disc(
    make_batch: Callable[..., SegmentBatch], make_disc: Callable[..., np.ndarray]
) -> None:
    half = make_disc(64, 64, 32, 32, 20)
    half[:, 32:] = False
    batch = make_batch([[half]])
    metrics = evaluate(DiscBaseline(0.3, nearest=True), [batch], EvalConfig(clicks=(1, 2)), "cpu").metrics()
    assert metrics["miou@1"] < metrics["miou@2"] < 1


def test_mean_area_needs_masks(make_batch: Callable[..., SegmentBatch]) -> None:
    with pytest.raises(UserError, match="no mask"):
        mean_area_fraction([make_batch([[]])])


def test_a_module_is_evaluated_in_evaluation_mode(scene: SegmentBatch, make_oracle: type) -> None:
    modes: list[bool] = []

    class Module(torch.nn.Module, make_oracle):  # type: ignore[misc]
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            make_oracle.__init__(self, truth_of(scene))

        def encode(self, images: torch.Tensor) -> torch.Tensor:
            modes.append(self.training)
            return make_oracle.encode(self, images)

    module = Module()
    evaluate(module, [scene], EvalConfig(clicks=(1,)), "cpu")
    assert modes == [False] and module.training


def test_pictures_show_the_object_of_median_area(scene: SegmentBatch, make_oracle: type, tmp_path: Path) -> None:
    gallery = Gallery(tmp_path / "pictures", limit=1)
    evaluate(make_oracle(truth_of(scene)), [scene, scene], EvalConfig(), "cpu", watcher=gallery)
    assert [path.name for path in gallery.paths] == ["00000000_1.png"]
    with Image.open(gallery.paths[0]) as picture:
        # Four panels of 64 x 32 pixels, six times as large, with gaps and a title.
        assert picture.size == (4 * 64 * 6 + 3 * 4, 32 * 6 + 16)
