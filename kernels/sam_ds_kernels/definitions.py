"""What the kernels must give, by the definitions, in plain torch and whatever type the inputs have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """SAM's attention over a grid: qkv [B, H, W, 3, heads, D] to [B, H, W, heads, D]."""
    batch, height, width, _, heads, head_dim = qkv.shape
    q, k, v = qkv.permute(3, 0, 4, 1, 2, 5).reshape(3, batch, heads, height * width, head_dim).unbind(0)
    places = q.view(batch, heads, height, width, head_dim)
    h = torch.einsum("bnyxd,ykd->bnyxk", places, rel_h[_offset(height, q.device)])
    w = torch.einsum("bnyxd,xkd->bnyxk", places, rel_w[_offset(width, q.device)])
    scores = (q @ k.transpose(2, 3) * head_dim**-0.5).view(*h.shape[:4], height, width)
    scores = (scores + h[..., :, None] + w[..., None, :]).view(batch, heads, height * width, -1)
    return (scores.softmax(-1) @ v).view_as(places).permute(0, 2, 3, 1, 4)


def windowed(qkv: Tensor, pad: Tensor, rel_h: Tensor, rel_w: Tensor, window: int) -> Tensor:
    """The same in windows of a grid that is padded with ``pad`` [3, heads, D] at the bottom and the right."""
    batch, height, width = qkv.shape[:3]
    rows, columns = -(-height // window), -(-width // window)
    full = pad.expand(batch, rows * window, columns * window, *pad.shape).clone()
    full[:, :height, :width] = qkv
    out = torch.empty_like(full[:, :, :, 0])
    for y in range(0, rows * window, window):
        for x in range(0, columns * window, window):
            place = (slice(None), slice(y, y + window), slice(x, x + window))
            out[place] = attention(full[place], rel_h, rel_w)
    return out[:, :height, :width]


def _offset(size: int, device: torch.device) -> Tensor:
    """[size, size]: the row of a table, by query and key."""
    places = torch.arange(size, device=device)
    return places[:, None] - places + size - 1


def mask_loss(
    logits: Tensor, truth: Tensor, valid: Tensor, alpha: float, gamma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Focal, dice and IoU [O, C] of logits [O, C, h, w] on the grid of truth [O, H, W]."""
    height, width = truth.shape[1:]
    x = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
    rows = torch.arange(height, device=x.device) < valid[:, :1]
    columns = torch.arange(width, device=x.device) < valid[:, 1:]
    inside = (rows[:, :, None] & columns[:, None])[:, None].to(x.dtype)
    t = truth[:, None].to(x.dtype) * inside
    p = x.sigmoid()
    miss = torch.where(t > 0, 1 - p, p)
    weight = torch.where(t > 0, alpha, 1 - alpha) if alpha >= 0 else 1.0
    focal = weight * miss**gamma * (F.softplus(x) - x * t) * inside
    cut = (x > 0) * inside
    shared, union = (cut * t).sum((2, 3)), ((cut + t) > 0).sum((2, 3))
    dice = 1 - (2 * (p * t).sum((2, 3)) + 1) / ((p * inside).sum((2, 3)) + t.sum((2, 3)) + 1)
    iou = torch.where(union > 0, shared / union.clamp(min=1), 1.0)
    return focal.sum((2, 3)) / inside.sum((2, 3)).clamp(min=1), dice, iou
