"""Focal loss, dice loss and IoU of mask logits against binary truth, on the truth's grid.

The definitions are SAM's: focal as in "Focal Loss for Dense Object Detection" (Lin et al. 2017, eq. 5), meant over
pixels; dice as in V-Net (Milletari et al. 2016) with 1 added above and below, so that two empty masks agree.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class MaskLoss(NamedTuple):
    focal: Tensor  # float32 [O, C], meant over the valid pixels
    dice: Tensor  # float32 [O, C]
    iou: Tensor  # float32 [O, C], of the logits cut at 0; carries no gradient


def mask_loss(logits: Tensor, truth: Tensor, valid: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> MaskLoss:
    """Losses of C masks an object.

    Args:
        logits: float [O, C, h, w]. Upsampled bilinearly to the truth's grid when that is finer.
        truth: bool or uint8 [O, H, W].
        valid: int [O, 2], height and width of the top-left part of the truth's grid that shows picture; the
            padding beyond it takes no part.
        alpha: weight of foreground pixels (1 - alpha for background); negative: no weights.
        gamma: how fast well-classified pixels lose their weight.
    """
    x = upsample(logits, truth.shape[-2:])
    inside = _inside(valid, truth.shape[-2:])[:, None]  # [O, 1, H, W]
    t = (truth[:, None] * inside).to(x.dtype)  # [O, 1, H, W]
    p = x.sigmoid() * inside  # [O, C, H, W]
    sum_p, sum_t, sum_pt = p.sum((-2, -1)), t.sum((-2, -1)), (p * t).sum((-2, -1))
    dice = 1 - (2 * sum_pt + 1) / (sum_p + sum_t + 1)

    miss = p + t - 2 * p * t  # 1 - p_t: how much of the right class's probability is missing
    cross_entropy = F.softplus(x) - x * t
    focal = cross_entropy * (miss * miss if gamma == 2 else miss.clamp(min=0) ** gamma) * inside
    if alpha >= 0:
        focal = focal * (1 - alpha + (2 * alpha - 1) * t)
    num_valid = inside.sum((-2, -1)).clamp(min=1)
    return MaskLoss(focal.sum((-2, -1)) / num_valid, dice, _iou(x, t, inside))


def upsample(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Logits [O, C, h, w] in float32 on a grid of ``size``, bilinear between pixel centres."""
    logits = logits.float()
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def _inside(valid: Tensor, size: torch.Size) -> Tensor:
    rows = torch.arange(size[0], device=valid.device) < valid[:, :1]  # [O, H]
    columns = torch.arange(size[1], device=valid.device) < valid[:, 1:]  # [O, W]
    return rows[:, :, None] & columns[:, None, :]  # [O, H, W]


@torch.no_grad()
def _iou(x: Tensor, t: Tensor, inside: Tensor) -> Tensor:
    cut = ((x > 0) & inside).to(x.dtype)
    shared = (cut * t).sum((-2, -1))
    union = cut.sum((-2, -1)) + t.sum((-2, -1)) - shared
    return torch.where(union > 0, shared / union.clamp(min=1), torch.ones_like(union))
