"""The objective of one round: focal, dice and predicted-IoU losses of the best of an object's masks.

SAM trains the mask with the lowest focal + dice loss of those the prompt asks for ("Segment Anything", section 3,
"Resolving ambiguity"), chosen for each object on its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sam_ds.config.schema import LossConfig
from sam_ds.ops.mask_loss import mask_loss
from sam_ds.types import Prediction


class RoundLoss(NamedTuple):
    """float32 [O] each. ``total`` is weighted; the parts are not."""

    total: Tensor
    focal: Tensor
    dice: Tensor
    iou_error: Tensor  # squared error of the predicted IoU
    iou: Tensor  # of the trained mask with the truth; no gradient


def round_loss(prediction: Prediction, allowed: Tensor, truth: Tensor, valid: Tensor, config: LossConfig) -> RoundLoss:
    """Losses of one round.

    Args:
        prediction: C masks an object.
        allowed: bool [O, C], the masks the prompt asks for.
        truth: bool [O, H, W]; valid: int [O, 2] (see ``ops.mask_loss``).
    """
    masks, rows = prediction.masks, torch.arange(len(truth), device=truth.device)
    best, actual = torch.zeros_like(rows), None
    if masks.shape[1] > 1:
        best, actual = _best(prediction, allowed, truth, valid, config)
        masks = masks[rows, best][:, None]
    # Only the chosen mask is worth a backward: its losses are taken once more, with a graph.
    chosen = mask_loss(masks, truth, valid, config.focal_alpha, config.focal_gamma, config.implementation)
    focal, dice, iou = (part[:, 0] for part in chosen)
    actual = chosen.iou if actual is None else actual
    squared = (prediction.iou.float() - actual) ** 2  # [O, C]
    of_all = (squared * allowed).sum(1) / allowed.sum(1)
    iou_error = of_all if config.iou_masks == "all" else squared[rows, best]
    total = config.focal * focal + config.dice * dice + config.iou * iou_error
    return RoundLoss(total, focal, dice, iou_error, iou)


@torch.no_grad()
def _best(
    prediction: Prediction, allowed: Tensor, truth: Tensor, valid: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """The mask to train, int64 [O], and the actual IoU of every mask, float32 [O, C]."""
    focal, dice, iou = mask_loss(
        prediction.masks, truth, valid, config.focal_alpha, config.focal_gamma, config.implementation
    )
    cost = (config.focal * focal + config.dice * dice).masked_fill(~allowed, torch.inf)
    return cost.argmin(1), iou
