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
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from .checks import DTYPES, check_contiguous, check_device
from .launch import INTERPRETED, launch

LOG2E = tl.constexpr(1.4426950408889634)
NUM_SUMS = 6
_ROWS = 16  # of cells a strip
_LARGEST_WIDTH = 1024


@triton.jit
def _cells(X, row, column, HEIGHT, WIDTH: tl.constexpr):
    """A row of cells, clamped to the grid: each lane's left neighbour, its own and its right neighbour."""
    X += tl.minimum(tl.maximum(row, 0), HEIGHT - 1) * WIDTH
    left = tl.load(X + tl.minimum(tl.maximum(column - 1, 0), WIDTH - 1)).to(tl.float32)
    own = tl.load(X + tl.minimum(column, WIDTH - 1)).to(tl.float32)
    right = tl.load(X + tl.minimum(column + 1, WIDTH - 1)).to(tl.float32)
    return left, own, right


@triton.jit
def _mix(before, own, after, offset: tl.constexpr):
    if offset < 0:
        return own + (before - own) * -offset
    if offset > 0:
        return own + (after - own) * offset
    return own


@triton.jit
def _share(g, before, own, after, offset: tl.constexpr):
    """The mix turned around: the three sums, each with its part of a pixel's gradient."""
    if offset < 0:
        return before + g * -offset, own + g * (1 + offset), after
    if offset > 0:
        return before, own + g * (1 - offset), after + g * offset
    return before, own + g, after


@triton.jit
def _truth(TRUTH, row, column, k: tl.constexpr, packed, ok, WIDTH: tl.constexpr, F: tl.constexpr):
    """Of the k-th pixel of each cell in a fine row: whether the truth has it."""
    if F == 4:
        return ((packed >> (8 * k)) & 255) != 0
    return tl.load(TRUTH + row * (F * WIDTH) + F * column + k, mask=ok, other=0) != 0


@triton.jit
def _packed(TRUTH, row, column, ok, WIDTH: tl.constexpr, F: tl.constexpr):
    """The four pixels of each cell in a fine row, in the bytes of one int32."""
    if F == 4:
        return tl.load(TRUTH + row * WIDTH + column, mask=ok, other=0)
    return tl.zeros_like(column)


@triton.jit
def _missing(x, t, FAST: tl.constexpr):
    """m and softplus(y)."""
    y = tl.where(t, -x, x)
    e = tl.exp2(-tl.abs(x) * LOG2E)
    large = 1.0 / (1.0 + e)
    miss = tl.where(y >= 0, large, e * large)
    if FAST:  # one instruction of the special function unit; tl.log is a polynomial of sixty
        log = libdevice.fast_logf(1.0 + e)
    else:
        log = tl.log(1.0 + e)
    return miss, tl.maximum(y, 0.0) + log


@triton.jit
def _power(miss, GAMMA: tl.constexpr):
    if GAMMA == 2:
        return miss * miss
    if GAMMA == 0:
        return tl.full(miss.shape, 1.0, tl.float32)
    return tl.exp2(GAMMA * tl.log2(tl.maximum(miss, 1e-30)))


@triton.jit
def _forward_kernel(
    X,  # [O, C, HEIGHT, WIDTH]
    TRUTH,  # uint8 [O, F * HEIGHT, F * WIDTH]; with F = 4 as int32, four pixels each
    VALID,  # int32 [O, 2]  rows and columns of the fine grid that count
    SUMS,  # float32 [O, C, strips, 6]
    HEIGHT,
    W_FOREGROUND,
    W_BACKGROUND,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,  # power of two, at least WIDTH
    F: tl.constexpr,
    ROWS: tl.constexpr,
    GAMMA: tl.constexpr,
    FAST: tl.constexpr,
):
    # The masks of an object run side by side, so that the truth they share is still in the cache.
    channel, strip, item = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    mask = item * tl.num_programs(0) + channel
    X += mask * HEIGHT * WIDTH
    TRUTH += item * HEIGHT * WIDTH * (F if F == 4 else F * F)
    rows_valid = tl.load(VALID + 2 * item)
    columns_valid = tl.load(VALID + 2 * item + 1)
    column = tl.arange(0, LANES)
    focal = tl.zeros((LANES,), tl.float32)
    sum_p = tl.zeros((LANES,), tl.float32)
    sum_pt = tl.zeros((LANES,), tl.float32)
    sum_t = tl.zeros((LANES,), tl.float32)
    positive = tl.zeros((LANES,), tl.float32)
    shared = tl.zeros((LANES,), tl.float32)
    first = strip * ROWS
    above_l, above, above_r = _cells(X, first - 1, column, HEIGHT, WIDTH)
    here_l, here, here_r = _cells(X, first, column, HEIGHT, WIDTH)
    for row in range(first, tl.minimum(first + ROWS, HEIGHT)):
        below_l, below, below_r = _cells(X, row + 1, column, HEIGHT, WIDTH)
        for ky in tl.static_range(F):
            fine = F * row + ky
            left = _mix(above_l, here_l, below_l, (ky + 0.5) / F - 0.5)
            own = _mix(above, here, below, (ky + 0.5) / F - 0.5)
            right = _mix(above_r, here_r, below_r, (ky + 0.5) / F - 0.5)
            row_ok = (column < WIDTH) & (fine < rows_valid)
            packed = _packed(TRUTH, fine, column, row_ok, WIDTH, F)
            for kx in tl.static_range(F):
                x = _mix(left, own, right, (kx + 0.5) / F - 0.5)
                ok = row_ok & (F * column + kx < columns_valid)
                t = _truth(TRUTH, fine, column, kx, packed, ok, WIDTH, F) & ok
                miss, softplus = _missing(x, t, FAST)
                loss = _power(miss, GAMMA) * softplus * tl.where(t, W_FOREGROUND, W_BACKGROUND)
                focal += tl.where(ok, loss, 0.0)
                sum_p += tl.where(ok, tl.where(t, 1.0 - miss, miss), 0.0)
                sum_pt += tl.where(t, 1.0 - miss, 0.0)
                sum_t += tl.where(t, 1.0, 0.0)
                positive += tl.where(ok & (x > 0), 1.0, 0.0)
                shared += tl.where(t & (x > 0), 1.0, 0.0)
        above_l, above, above_r = here_l, here, here_r
        here_l, here, here_r = below_l, below, below_r
    SUMS += (mask * tl.num_programs(1) + strip) * 6
    tl.store(SUMS, tl.sum(focal))
    tl.store(SUMS + 1, tl.sum(sum_p))
    tl.store(SUMS + 2, tl.sum(sum_pt))
    tl.store(SUMS + 3, tl.sum(sum_t))
    tl.store(SUMS + 4, tl.sum(positive))
    tl.store(SUMS + 5, tl.sum(shared))


@triton.jit
def _backward_kernel(
    X,  # [O, C, HEIGHT, WIDTH]
    TRUTH,  # as forward
    VALID,  # int32 [O, 2]
    COEFFICIENTS,  # float32 [O, C, 3]  c_f, c_0, c_1
    D_X,  # [O, C, HEIGHT, WIDTH]
    HEIGHT,
    W_FOREGROUND,
    W_BACKGROUND,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    F: tl.constexpr,
    ROWS: tl.constexpr,
    GAMMA: tl.constexpr,
    FAST: tl.constexpr,
):
    channel, strip, item = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    mask = item * tl.num_programs(0) + channel
    X += mask * HEIGHT * WIDTH
    D_X += mask * HEIGHT * WIDTH
    TRUTH += item * HEIGHT * WIDTH * (F if F == 4 else F * F)
    rows_valid = tl.load(VALID + 2 * item)
    columns_valid = tl.load(VALID + 2 * item + 1)
    c_f = tl.load(COEFFICIENTS + 3 * mask)
    c_0 = tl.load(COEFFICIENTS + 3 * mask + 1)
    c_1 = tl.load(COEFFICIENTS + 3 * mask + 2)
    column = tl.arange(0, LANES)
    zero = tl.zeros((LANES,), tl.float32)
    first = strip * ROWS
    above_l, above, above_r = _cells(X, first - 2, column, HEIGHT, WIDTH)
    here_l, here, here_r = _cells(X, first - 1, column, HEIGHT, WIDTH)
    # What the rows done so far owe the row above and this one, in the column to the left, their own and to the right.
    last_l, last_o, last_r = zero, zero, zero
    this_l, this_o, this_r = zero, zero, zero
    for row in range(first - 1, tl.minimum(first + ROWS, HEIGHT) + 1):
        below_l, below, below_r = _cells(X, row + 1, column, HEIGHT, WIDTH)
        up_l, up_o, up_r = zero, zero, zero
        mid_l, mid_o, mid_r = zero, zero, zero
        down_l, down_o, down_r = zero, zero, zero
        for ky in tl.static_range(F):
            fine = F * row + ky
            left = _mix(above_l, here_l, below_l, (ky + 0.5) / F - 0.5)
            own = _mix(above, here, below, (ky + 0.5) / F - 0.5)
            right = _mix(above_r, here_r, below_r, (ky + 0.5) / F - 0.5)
            row_ok = (column < WIDTH) & (fine >= 0) & (fine < rows_valid) & (row < HEIGHT)
            packed = _packed(TRUTH, fine, column, row_ok, WIDTH, F)
            g_l, g_o, g_r = zero, zero, zero
            for kx in tl.static_range(F):
                x = _mix(left, own, right, (kx + 0.5) / F - 0.5)
                ok = row_ok & (F * column + kx < columns_valid)
                t = _truth(TRUTH, fine, column, kx, packed, ok, WIDTH, F)
                miss, softplus = _missing(x, t, FAST)
                rest = 1.0 - miss
                d_focal = c_f * _power(miss, GAMMA) * (GAMMA * rest * softplus + miss)
                g = tl.where(t, -W_FOREGROUND, W_BACKGROUND) * d_focal + tl.where(t, c_0 + c_1, c_0) * (miss * rest)
                g = tl.where(ok, g, 0.0)
                g_l, g_o, g_r = _share(g, g_l, g_o, g_r, (kx + 0.5) / F - 0.5)
            up_l, mid_l, down_l = _share(g_l, up_l, mid_l, down_l, (ky + 0.5) / F - 0.5)
            up_o, mid_o, down_o = _share(g_o, up_o, mid_o, down_o, (ky + 0.5) / F - 0.5)
            up_r, mid_r, down_r = _share(g_r, up_r, mid_r, down_r, (ky + 0.5) / F - 0.5)
        # At the edges the row stands in for its missing neighbour.
        top, bottom = tl.where(row == 0, 1.0, 0.0), tl.where(row == HEIGHT - 1, 1.0, 0.0)
        mid_l += top * up_l + bottom * down_l
        mid_o += top * up_o + bottom * down_o
        mid_r += top * up_r + bottom * down_r
        done_l, done_o, done_r = last_l + up_l, last_o + up_o, last_r + up_r
        done_o += tl.where(column == 0, done_l, 0.0) + tl.where(column == WIDTH - 1, done_r, 0.0)
        from_right = tl.gather(done_l, tl.minimum(column + 1, LANES - 1), 0)
        from_left = tl.gather(done_r, tl.maximum(column - 1, 0), 0)
        done_o += tl.where(column < WIDTH - 1, from_right, 0.0) + tl.where(column > 0, from_left, 0.0)
        ok = (column < WIDTH) & (row - 1 >= first)
        tl.store(D_X + (row - 1) * WIDTH + column, done_o.to(D_X.dtype.element_ty), mask=ok)
        last_l, last_o, last_r = this_l + mid_l, this_o + mid_o, this_r + mid_r
        this_l, this_o, this_r = down_l, down_o, down_r
        above_l, above, above_r = here_l, here, here_r
        here_l, here, here_r = below_l, below, below_r


def _launch_arguments(logits: Tensor, truth: Tensor, alpha: float, gamma: float) -> dict[str, object]:
    height, width = logits.shape[-2:]
    lanes = max(16, triton.next_power_of_2(width))
    return {
        "HEIGHT": height,
        "W_FOREGROUND": alpha if alpha >= 0 else 1.0,
        "W_BACKGROUND": 1 - alpha if alpha >= 0 else 1.0,
        "WIDTH": width,
        "LANES": lanes,
        "F": truth.shape[-1] // width,
        "ROWS": _ROWS,
        "GAMMA": gamma,
        "FAST": not INTERPRETED,
        "num_warps": max(1, min(8, lanes // 64)),
    }


def _grid(logits: Tensor) -> tuple[int, int, int]:
    objects, masks, height, _ = logits.shape
    return masks, triton.cdiv(height, _ROWS), objects


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
    grid = _grid(logits)
    sums = torch.empty(*logits.shape[:2], grid[1], NUM_SUMS, dtype=torch.float32, device=logits.device)
    if sums.numel():
        arguments = _launch_arguments(logits, truth, alpha, gamma)
        launch(_forward_kernel, grid, logits, _as_kernels_read(logits, truth), valid, sums, **arguments)
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
        arguments = _launch_arguments(logits, truth, alpha, gamma)
        truth = _as_kernels_read(logits, truth)
        launch(_backward_kernel, _grid(logits), logits, truth, valid, coefficients, d_logits, **arguments)
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
        raise ValueError(
            f"logits must be [O, C, h, w] of {', '.join(map(str, DTYPES))}, not {list(logits.shape)} {logits.dtype}"
        )
    objects, _, height, width = logits.shape
    if not 1 <= width <= _LARGEST_WIDTH:
        raise ValueError(f"logits must be 1 to {_LARGEST_WIDTH} columns wide, not {width}")
    shapes = [(objects, factor * height, factor * width) for factor in (1, 2, 4, 8)]
    if tuple(truth.shape) not in shapes or truth.dtype not in (torch.bool, torch.uint8):
        raise ValueError(
            f"truth must be bool or uint8 of 1, 2, 4 or 8 times the logits' {objects} x {height} x {width}, "
            f"not {list(truth.shape)} {truth.dtype}"
        )
    if tuple(valid.shape) != (objects, 2) or valid.is_floating_point():
        raise ValueError(f"valid must be integers [{objects}, 2], not {list(valid.shape)} {valid.dtype}")
    if not logits.device == truth.device == valid.device:
        raise ValueError(f"one device, please: logits {logits.device}, truth {truth.device}, valid {valid.device}")
    check_device("logits", logits)
    check_contiguous("logits", logits)
    check_contiguous("truth", truth)
