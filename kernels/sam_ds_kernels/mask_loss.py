"""Focal loss, dice loss and IoU of mask logits on a finer grid, without ever writing the finer logits.

Every pixel of the fine grid is a bilinear mix (between pixel centres, edges repeated) of at most four cells of the
logits. A program walks down a strip of rows of cells, a lane a column, and computes the F x F pixels of each cell in
registers: with o = (k + .5) / F - .5 for the k-th pixel of a cell along one axis, the pixel is (1 - |o|) of its own
cell and |o| of the one before (o < 0) or after it.

Forward. With y = x in the background and -x in the foreground, m = sigmoid(y) is the probability that is missing from
the right class, and per mask six sums over the valid pixels say everything:

    focal = sum w m^gamma softplus(y),   sum p,   sum p t,   sum t,   count(x > 0),   count(x > 0 and t)
    dice  = 1 - n / s,   n = 2 sum p t + 1,   s = sum p + sum t + 1

Each strip stores its share and a reduction adds them up: no atomics, and two runs give the same bits.

Backward. m and the mix are computed again (x is all that is kept), and

    dL/dx = +- c_f w m^gamma (gamma (1 - m) softplus(y) + m)  +  (c_0 + c_1 t) m (1 - m)

with c_f = dL/dfocal / area, c_0 = dL/ddice n / s^2, c_1 = -2 dL/ddice / s. Its way back to the cells is the mix turned
around: what pixels owe the row above, their own and the row below is carried from row to row in registers, and what
they owe the columns beside them moves by one lane when a row is complete. A strip computes one row of cells beyond
each of its ends again, instead of sharing it with its neighbour.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .checks import DTYPES, Refused, check_contiguous, check_device, check_index
from .configs import config_for
from .launch import INTERPRETED, launch
from .mask_loss_kernels import backward, forward

NUM_SUMS = 6
_LARGEST_WIDTH = 1024


def _launch_arguments(kernel: str, logits: Tensor, truth: Tensor, alpha: float, gamma: float) -> dict[str, object]:
    height, width = logits.shape[-2:]
    config = config_for(kernel, width, logits.device)
    return {
        "masks": logits.shape[1],
        "HEIGHT": height,
        "W_FOREGROUND": alpha if alpha >= 0 else 1.0,
        "W_BACKGROUND": 1 - alpha if alpha >= 0 else 1.0,
        "WIDTH": width,
        "LANES": max(16, triton.next_power_of_2(width)),
        "F": truth.shape[-1] // width,
        "ROWS": config["rows"],
        "GAMMA": gamma,
        "FAST": not INTERPRETED,
        "num_warps": config["num_warps"],
    }


def _as_kernels_read(logits: Tensor, truth: Tensor) -> Tensor:
    truth = truth.view(torch.uint8)
    return truth.view(torch.int32) if truth.shape[-1] == 4 * logits.shape[-1] else truth


def _area(valid: Tensor, truth: Tensor) -> Tensor:
    """float32 [O, 1]: the pixels that count."""
    height, width = truth.shape[-2:]
    sizes = torch.stack([valid[:, 0].clamp(0, height), valid[:, 1].clamp(0, width)], 1)
    return sizes.float().prod(1, keepdim=True)


def run_forward(logits: Tensor, truth: Tensor, valid: Tensor, alpha: float, gamma: float) -> list[Tensor]:
    """focal, dice, iou, and sum p t and sum p + sum t for the backward; [O, C] each."""
    arguments = _launch_arguments("mask_loss_forward", logits, truth, alpha, gamma)
    strips = triton.cdiv(logits.shape[-2], arguments["ROWS"])
    sums = torch.empty(*logits.shape[:2], strips, NUM_SUMS, dtype=torch.float32, device=logits.device)
    if sums.numel():
        grid = (sums.numel() // NUM_SUMS,)
        launch(forward, grid, logits, _as_kernels_read(logits, truth), valid, sums, **arguments)
    focal, sum_p, sum_pt, sum_t, positive, shared = sums.sum(2).unbind(-1)
    union = positive + sum_t - shared
    iou = torch.where(union > 0, shared / union.clamp(min=1), 1.0)
    total = sum_p + sum_t + 1
    return [focal / _area(valid, truth).clamp(min=1), 1 - (2 * sum_pt + 1) / total, iou, 2 * sum_pt + 1, total]


_forward = torch.library.custom_op("sam_ds::mask_loss", run_forward, mutates_args=())


@_forward.register_fake
def _(logits: Tensor, truth: Tensor, valid: Tensor, alpha: float, gamma: float) -> list[Tensor]:
    return [torch.empty(logits.shape[:2], dtype=torch.float32, device=logits.device) for _ in range(5)]


def run_backward(
    d_focal: Tensor,
    d_dice: Tensor,
    logits: Tensor,
    truth: Tensor,
    valid: Tensor,
    numerator: Tensor,
    total: Tensor,
    alpha: float,
    gamma: float,
) -> Tensor:
    d_logits = torch.empty_like(logits)
    if logits.numel():
        c_f = d_focal / _area(valid, truth).clamp(min=1)
        coefficients = torch.stack([c_f, d_dice * numerator / total.square(), -2 * d_dice / total], -1)
        arguments = _launch_arguments("mask_loss_backward", logits, truth, alpha, gamma)
        grid = (logits.shape[0] * logits.shape[1] * triton.cdiv(logits.shape[-2], arguments["ROWS"]),)
        truth = _as_kernels_read(logits, truth)
        launch(backward, grid, logits, truth, valid, coefficients, d_logits, **arguments)
    return d_logits


_backward = torch.library.custom_op("sam_ds::mask_loss_backward", run_backward, mutates_args=())


@_backward.register_fake
def _(d_focal, d_dice, logits, truth, valid, numerator, total, alpha, gamma) -> Tensor:
    return torch.empty_like(logits)


def _setup(ctx, inputs, output) -> None:
    logits, truth, valid, ctx.alpha, ctx.gamma = inputs
    ctx.save_for_backward(logits, truth, valid, *output[3:])
    ctx.mark_non_differentiable(*output[2:])


def _autograd(ctx, grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    d_focal, d_dice = grads[:2]
    grad = _backward(d_focal.contiguous(), d_dice.contiguous(), *ctx.saved_tensors, ctx.alpha, ctx.gamma)
    return grad, None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup)


def mask_loss(
    logits: Tensor, truth: Tensor, valid: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of C masks an object against its truth.

    Args:
        logits: [O, C, h, w], contiguous, bfloat16, float16 or float32; w at most 1,024.
        truth: bool or uint8 (0 or 1) [O, F h, F w], contiguous, F one of 1, 2, 4 and 8.
        valid: int [O, 2], rows and columns of the truth's grid, from the top left, that count.
        alpha: weight of the foreground, 1 - alpha that of the background; negative: no weights.
        gamma: how fast well-classified pixels lose their weight.

    Returns:
        focal (meant over the valid pixels), dice and IoU (of the logits cut at 0; carries no gradient), float32 [O, C].

    Raises:
        ValueError: a shape, type, device or layout that the kernels do not take; the message has the values.
    """
    _check(logits, truth, valid)
    focal, dice, iou, *_ = _forward(logits, truth, valid.to(torch.int32).contiguous(), alpha, gamma)
    return focal, dice, iou


def _check(logits: Tensor, truth: Tensor, valid: Tensor) -> None:
    if logits.dim() != 4 or logits.dtype not in DTYPES:
        raise Refused(
            f"logits must be [O, C, h, w] of {', '.join(map(str, DTYPES))}, not {list(logits.shape)} {logits.dtype}"
        )
    objects, masks, height, width = logits.shape
    if not 1 <= width <= _LARGEST_WIDTH:
        raise Refused(f"logits must be 1 to {_LARGEST_WIDTH} columns wide, not {width}")
    shapes = [(objects, factor * height, factor * width) for factor in (1, 2, 4, 8)]
    if tuple(truth.shape) not in shapes or truth.dtype not in (torch.bool, torch.uint8):
        raise Refused(
            f"truth must be bool or uint8 of 1, 2, 4 or 8 times the logits' {objects} x {height} x {width}, "
            f"not {list(truth.shape)} {truth.dtype}"
        )
    if tuple(valid.shape) != (objects, 2) or valid.is_floating_point():
        raise Refused(f"valid must be integers [{objects}, 2], not {list(valid.shape)} {valid.dtype}")
    if not logits.device == truth.device == valid.device:
        raise Refused(f"one device, please: logits {logits.device}, truth {truth.device}, valid {valid.device}")
    check_index("pixels of a mask", truth.shape[1] * truth.shape[2])
    check_index("rows of all masks", objects * masks * height)
    check_device("logits", logits)
    check_contiguous("logits", logits)
    check_contiguous("truth", truth)
