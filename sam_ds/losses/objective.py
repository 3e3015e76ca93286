"""The objective of one round: focal, dice and predicted-IoU losses of the best of an object's masks.

SAM trains the mask with the lowest focal + dice loss of those the prompt asks for ("Segment Anything", section 3,
"Resolving ambiguity"), chosen for each object on its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sam_ds.config.schema import LossConfig
from sam_ds.ops.mask_loss import MaskLoss, mask_loss
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
    focusing = (config.focal_alpha, config.focal_gamma)
    all_trained = masks.shape[1] == 1 or config.other_masks > 0
    with torch.set_grad_enabled(all_trained and torch.is_grad_enabled()):
        losses = mask_loss(masks, truth, valid, *focusing)  # [O, C]
    best = _cost(losses, config).detach().masked_fill(~allowed, torch.inf).argmin(1)
    squared = (prediction.iou.float() - losses.iou) ** 2  # [O, C]
    iou_error = (squared * allowed).sum(1) / allowed.sum(1) if config.iou_masks == "all" else squared[rows, best]
    if all_trained:
        chosen = MaskLoss(*(part[rows, best] for part in losses))
        cost = _with_others(_cost(losses, config), best, allowed, config.other_masks)
    else:  # only the best is worth a backward: its losses are taken once more, with a graph
        chosen = MaskLoss(*(part[:, 0] for part in mask_loss(masks[rows, best][:, None], truth, valid, *focusing)))
        cost = _cost(chosen, config)
    return RoundLoss(cost + config.iou * iou_error, chosen.focal, chosen.dice, iou_error, chosen.iou)


def _cost(losses: MaskLoss, config: LossConfig) -> Tensor:
    return config.focal * losses.focal + config.dice * losses.dice


def _with_others(cost: Tensor, best: Tensor, allowed: Tensor, share: float) -> Tensor:
    """Of costs [O, C] those of the best and, with a share, the mean of the other allowed masks; [O].

    With a share every mask learns from every object, with none only from those it won: "relaxed winner takes all"
    (Rupprecht et al. 2017, arXiv 1612.00197).
    """
    of_best = cost.gather(1, best[:, None])[:, 0]
    others = allowed.sum(1) - 1  # [O]
    of_others = ((cost * allowed).sum(1) - of_best) / others.clamp(min=1)
    return torch.where(others > 0, (1 - share) * of_best + share * of_others, of_best)
