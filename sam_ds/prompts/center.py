"""Evaluation's clicks: the centre of the largest error region, without any randomness.

The centre is the pixel farthest from the outside of its region (what lies beyond the raster is outside), and the
largest region is the one with the farthest such pixel. False negatives and false positives are regions of their own.
So do SAM's, SAM 2's and RITM's evaluations (Sofiiuk et al., "Reviving Iterative Training with Mask Guidance for
Interactive Segmentation", 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sam_ds.ops.distance_transform import distance_transform
from sam_ds.types import MASKED, NEGATIVE, POSITIVE


def center_click(region: Tensor) -> tuple[Tensor, Tensor]:
    """The pixel of each region that is farthest from its outside; of equals, the first in reading order.

    Args:
        region: bool [O, H, W].

    Returns:
        points float32 [O, 2] as (x, y) of the region's own grid, and found bool [O]: False where a region is empty
        (the point is then (0, 0)).
    """
    points, depth = _deepest(region)
    return points, depth > 0


def correction_center(truth: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
    """The next click on masks bool [O, H, W]: positive in what the prediction misses, negative in what it has too much.

    Returns:
        points float32 [O, 2] as (x, y), and labels int64 [O]: POSITIVE, NEGATIVE, or MASKED where nothing is wrong.
    """
    points, depth = _deepest(torch.cat([truth & ~prediction, prediction & ~truth]))
    (missed, extra), (missed_depth, extra_depth) = points.chunk(2), depth.chunk(2)
    positive = missed_depth > extra_depth
    labels = torch.where(positive, POSITIVE, NEGATIVE)
    labels = torch.where((missed_depth > 0) | (extra_depth > 0), labels, MASKED)
    return torch.where(positive[:, None], missed, extra), labels


def _deepest(region: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [O, 2] the farthest pixel, int32 [O] its squared distance."""
    distance = distance_transform(region).flatten(1)  # [O, H * W]
    depth, first = distance.max(1)  # of equals, torch promises the first
    width = region.shape[2]
    return torch.stack([first % width, first // width], 1).float(), depth
