"""Focal loss, dice loss and IoU of mask logits against binary truth, on the truth's grid.

The definitions are SAM's: focal as in "Focal Loss for Dense Object Detection" (Lin et al. 2017, eq. 5), meant over
pixels; dice as in V-Net (Milletari et al. 2016) with 1 added above and below, so that two empty masks agree.

The fused form keeps the logits and nothing else of their size for the backward. It works with y = x where the truth
is background and -x where it is foreground, and m = sigmoid(y), the probability that is missing from the right class:

    focal    f(y) = w m^gamma softplus(y)        df/dy = w m^gamma (gamma (1 - m) softplus(y) + m)
    dice     p = m or 1 - m                      dp/dy = m (1 - m) or -m (1 - m)
             d = 1 - n / s                       dd/dp = n / s^2 in the background, n / s^2 - 2 / s in the foreground
             with n = 2 sum(p t) + 1 and s = sum(p) + sum(t) + 1
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sam_ds.ops.choice import by_kernels, choose, forced

IMPLEMENTATIONS = ("auto", "reference", "fused", "triton")


class MaskLoss(NamedTuple):
    focal: Tensor  # float32 [O, C], meant over the valid pixels
    dice: Tensor  # float32 [O, C]
    iou: Tensor  # float32 [O, C], of the logits cut at 0; carries no gradient


def mask_loss(
    logits: Tensor,
    truth: Tensor,
    valid: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    implementation: str = "auto",
) -> MaskLoss:
    """Losses of C masks an object.

    Args:
        logits: float [O, C, h, w]. Upsampled bilinearly to the truth's grid when that is finer.
        truth: bool or uint8 [O, H, W].
        valid: int [O, 2], height and width of the top-left part of the truth's grid that shows picture; the
            padding beyond it takes no part.
        alpha: weight of foreground pixels (1 - alpha for background); negative: no weights.
        gamma: how fast well-classified pixels lose their weight.
        implementation: ``reference`` (autograd's backward), ``fused``, ``triton`` (kernels for CUDA that
            never write the upsampled logits), or ``auto``, the fastest one here that takes these inputs.

    Raises:
        ValueError: an unknown implementation, or inputs that the kernels do not take when they are asked for.
    """
    wanted = forced("mask_loss", implementation, IMPLEMENTATIONS, logits.device)
    found = by_kernels("mask_loss", wanted, logits.device, lambda: _triton(logits, truth, valid, alpha, gamma))
    if found is not None:
        return found
    implementation = choose("mask_loss", "fused") if wanted == "auto" else wanted
    if tuple(logits.shape[-2:]) != tuple(truth.shape[-2:]):
        logits = upsample(logits, truth.shape[-2:])
    weights = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
    if implementation == "reference":
        return _reference(logits.float(), truth, valid, weights, gamma)
    return MaskLoss(*_Fused.apply(logits, truth, valid, weights, gamma))  # type: ignore[no-untyped-call]


def _triton(logits: Tensor, truth: Tensor, valid: Tensor, alpha: float, gamma: float) -> MaskLoss:
    from sam_ds_kernels import mask_loss as kernel

    return MaskLoss(*kernel(logits.contiguous(), truth.contiguous(), valid, alpha, gamma))


def upsample(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Logits [O, C, h, w] in float32 on a grid of ``size``, bilinear between pixel centres."""
    logits = logits.float()
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def _truth_inside(truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [O, 1, H, W] each: the truth in the valid part, and that part."""
    rows = torch.arange(truth.shape[-2], device=valid.device) < valid[:, :1]  # [O, H]
    columns = torch.arange(truth.shape[-1], device=valid.device) < valid[:, 1:]  # [O, W]
    inside = rows[:, None, :, None] & columns[:, None, None, :]  # [O, 1, H, W]
    return (truth[:, None].bool() & inside).float(), inside.float()


def _reference(x: Tensor, truth: Tensor, valid: Tensor, weights: tuple[float, float], gamma: float) -> MaskLoss:
    """By the definitions; x is float32 [O, C, H, W]."""
    t, inside = _truth_inside(truth, valid)
    p = x.sigmoid() * inside  # [O, C, H, W]
    dice = 1 - (2 * _sum(p * t) + 1) / (_sum(p) + _sum(t) + 1)
    miss = (p - t).abs()
    cross_entropy = F.softplus(x) - x * t
    focal = cross_entropy * miss**gamma * inside * torch.where(t > 0, *weights)
    return MaskLoss(_sum(focal) / _sum(inside).clamp(min=1), dice, _iou(x, t, inside))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, truth: Tensor, valid: Tensor, weights: tuple[float, float], gamma: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        focal, dice, iou, numerator, total = _forward(logits, truth, valid, weights, gamma)
        ctx.save_for_backward(logits, truth, valid, numerator, total)
        ctx.weights, ctx.gamma = weights, gamma
        ctx.mark_non_differentiable(iou)
        return focal, dice, iou

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_focal: Tensor, d_dice: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        logits, truth, valid, numerator, total = ctx.saved_tensors
        grad = _backward(logits, truth, valid, numerator, total, d_focal, d_dice, ctx.weights, ctx.gamma)
        return grad, None, None, None, None


def _forward(
    logits: Tensor, truth: Tensor, valid: Tensor, weights: tuple[float, float], gamma: float
) -> tuple[Tensor, ...]:
    """Focal, dice, IoU, and dice's n and s; [O, C] each."""
    t, inside = _truth_inside(truth, valid)
    miss, cross_entropy = _missing(logits, t, inside)
    focal = _pow(miss, gamma).mul_(cross_entropy)
    sum_t, miss_t = _sum(t), _sum(miss * t)
    sum_pt = sum_t - miss_t
    numerator, total = 2 * sum_pt + 1, sum_pt + (_sum(miss) - miss_t) + sum_t + 1
    loss = weights[1] * _sum(focal) + (weights[0] - weights[1]) * _sum(focal * t)
    return loss / _sum(inside).clamp(min=1), 1 - numerator / total, _iou(logits, t, inside), numerator, total


def _backward(
    logits: Tensor,
    truth: Tensor,
    valid: Tensor,
    numerator: Tensor,
    total: Tensor,
    d_focal: Tensor,
    d_dice: Tensor,
    weights: tuple[float, float],
    gamma: float,
) -> Tensor:
    """The gradient of the logits, [O, C, H, W]."""
    t, inside = _truth_inside(truth, valid)
    miss, cross_entropy = _missing(logits, t, inside)
    rest = 1 - miss
    d_focal = d_focal / _sum(inside).clamp(min=1)
    grad = torch.addcmul(miss, rest, cross_entropy.mul_(gamma)).mul_(_pow(miss, gamma))
    grad.mul_(_by_class(t, weights[0] * d_focal, weights[1] * d_focal))
    background = d_dice * numerator / total.square()
    grad.addcmul_(miss.mul_(rest), _by_class(t, 2 * d_dice / total - background, background))
    return grad.mul_(1 - 2 * t).to(logits.dtype)


def _missing(logits: Tensor, t: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [O, C, H, W]: the probability missing from the right class and softplus(y), both 0 where not inside."""
    y = logits.float() * (1 - 2 * t)
    return y.sigmoid().mul_(inside), F.softplus(y).mul_(inside)


def _pow(miss: Tensor, gamma: float) -> Tensor:
    return miss * miss if gamma == 2 else miss**gamma


def _by_class(t: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
    """Values [O, C] of the two classes, spread over the pixels: [O, C, H, W]."""
    return background[..., None, None] + t * (foreground - background)[..., None, None]


def _sum(x: Tensor) -> Tensor:
    return x.sum((-2, -1))


@torch.no_grad()
def _iou(logits: Tensor, t: Tensor, inside: Tensor) -> Tensor:
    cut = (logits > 0) * inside
    shared = _sum(cut * t)
    union = _sum(cut) + _sum(t) - shared
    return torch.where(union > 0, shared / union.clamp(min=1), torch.ones_like(union))
