"""The click at the centre of the largest error region."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sam_ds.ops.distance_transform import distance_transform
from sam_ds.prompts.center import center_click, correction_center
from sam_ds.types import MASKED, NEGATIVE, POSITIVE


def brute_force(mask: np.ndarray, border: bool) -> np.ndarray:
    if border:
        mask = np.pad(mask, 1)
    unset = np.argwhere(~mask)
    pixels = np.argwhere(np.ones_like(mask))
    squared = ((pixels[:, None] - unset[None]) ** 2).sum(-1).min(1).reshape(mask.shape)
    return squared[1:-1, 1:-1] if border else squared


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (13, 11)])
@pytest.mark.parametrize("part", [0.3, 0.8, 0.97])
@pytest.mark.parametrize("border", [True, False])
def test_distances_are_exact(size: tuple[int, int], part: float, border: bool) -> None:
    masks = torch.rand(5, *size, generator=torch.Generator().manual_seed(1)) < part
    masks[:, 0, 0] = False  # some background, without which there is nothing to measure to
    expected = np.stack([brute_force(mask.numpy(), border) for mask in masks])
    for implementation in ("reference", "numba"):
        found = distance_transform(masks, border, implementation)
        np.testing.assert_array_equal(found.numpy(), expected, err_msg=implementation)


def test_distances_without_any_background_are_far() -> None:
    for implementation in ("reference", "numba"):
        assert (distance_transform(torch.ones(1, 4, 6, dtype=torch.bool), False, implementation) >= 100).all()


def test_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="no implementation 'fast'"):
        distance_transform(torch.ones(1, 2, 2, dtype=torch.bool), implementation="fast")


def test_click_is_in_the_middle_of_the_largest_region() -> None:
    region = torch.zeros(3, 40, 60, dtype=torch.bool)
    region[0, 10:15, 20:25] = True  # its middle is (22, 12)
    region[0, 30, :] = True  # longer, but thinner
    region[1, :, :] = True  # the edge of the raster is outside too
    points, found = center_click(region)
    assert points[0].tolist() == [22, 12]
    assert points[1].tolist() == [19, 19]  # the first of the equal ones, in reading order
    assert found.tolist() == [True, True, False]
    assert points[2].tolist() == [0, 0]


def test_missed_and_extra_regions_are_apart() -> None:
    truth = torch.zeros(3, 30, 30, dtype=torch.bool)
    prediction = truth.clone()
    truth[:2, 5:14, 5:14] = True
    prediction[1, 5:14, 14:29] = True  # touches the missed part: together their middle would be elsewhere
    truth[1, 5:14, 10:14] = False
    points, labels = correction_center(truth, prediction)
    assert labels.tolist() == [POSITIVE, NEGATIVE, MASKED]
    assert points[0].tolist() == [9, 9]
    assert prediction[1, int(points[1, 1]), int(points[1, 0])]
