"""IoU, boundary F1, the sums of ranks, and the table."""

from __future__ import annotations

import numpy as np
import pytest

from sam_ds.config.errors import UserError
from sam_ds.config.schema import EvalConfig
from sam_ds.evaluation.metrics import EvalSums, _boundary, boundary_f1, iou, table


def square(x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((100, 100), bool)
    mask[20:40, x0:x1] = True
    return mask


def test_iou() -> None:
    empty = np.zeros((100, 100), bool)
    assert iou(square(10, 30), square(10, 30)) == 1.0
    assert iou(square(20, 40), square(10, 30)) == pytest.approx(1 / 3)
    assert iou(empty, square(10, 30)) == 0.0
    assert iou(empty, empty) == 1.0


def test_boundary_f1_forgives_what_is_within_the_tolerance() -> None:
    truth = square(10, 30)
    assert boundary_f1(truth, truth, (100, 100)) == 1.0
    assert boundary_f1(square(12, 32), truth, (100, 100)) == 1.0  # 0.8 % of a diagonal of 141 is 2 pixels
    assert 0 < boundary_f1(square(13, 33), truth, (100, 100)) < 1
    assert boundary_f1(square(60, 80), truth, (100, 100)) == 0.0


def test_boundary_f1_by_hand() -> None:
    truth = np.zeros((20, 20), bool)
    truth[5, 2:12] = True  # 10 pixels, all of them boundary
    prediction = np.zeros_like(truth)
    prediction[5, 2:6] = True
    # All 4 predicted pixels are right; of the true ones the 4 and one more are within the tolerance of 1 pixel.
    assert boundary_f1(prediction, truth, (20, 20)) == pytest.approx(2 * 1.0 * 0.5 / 1.5)


def test_boundary_f1_is_that_of_all_pairs() -> None:
    generator = np.random.default_rng(0)
    for _ in range(10):
        masks = generator.random((2, 30, 40)) < 0.1
        edges = [np.argwhere(_boundary(mask)) for mask in masks]
        distances = np.hypot(*(edges[0][:, None] - edges[1][None]).transpose(2, 0, 1))
        precision, recall = (distances.min(1) <= 1).mean(), (distances.min(0) <= 1).mean()
        expected = 2 * precision * recall / (precision + recall)
        assert boundary_f1(masks[0], masks[1], (30, 40)) == pytest.approx(expected)


def test_boundary_f1_without_a_boundary() -> None:
    empty, full = np.zeros((9, 9), bool), np.ones((9, 9), bool)
    assert boundary_f1(empty, full, (9, 9)) == 1.0  # neither has one: the edge of a picture is none
    half = empty.copy()
    half[:4] = True
    assert boundary_f1(empty, half, (9, 9)) == 0.0


def test_sums_of_two_ranks_are_the_mean_over_all_masks() -> None:
    config = EvalConfig(clicks=(1,), box=False)
    values = {"miou@1": 1.0, "boundary_f1@1": 0.5, "miou@1/oracle": 1.0}
    one = EvalSums.zero(config).plus(values)
    other = EvalSums.zero(config).plus(dict.fromkeys(values, 0.0)).plus(values)
    both = one.from_tensor(one.to_tensor() + other.to_tensor()).metrics()
    assert both["masks"] == 3
    assert both["miou@1"] == pytest.approx(2 / 3)
    assert both["boundary_f1@1"] == pytest.approx(1 / 3)


def test_no_mask_is_said() -> None:
    with pytest.raises(UserError, match="no mask to evaluate"):
        EvalSums.zero(EvalConfig()).metrics()


def test_table_has_a_line_a_metric_and_a_column_a_predictor() -> None:
    before = dict.fromkeys(EvalSums.zero(EvalConfig()).names, 0.125)
    text = table({"before": before, "after": dict.fromkeys(before, 0.5)})
    lines = text.splitlines()
    assert lines[0].split() == ["before", "after"]
    assert any(line.split() == ["mIoU", "after", "3", "clicks", "12.5", "50.0"] for line in lines)
    assert len(lines) == 1 + len(before)
    assert len({len(line) for line in lines}) == 1
