"""Exact squared Euclidean distance to the nearest background pixel, of many masks at once.

Both implementations are separable: first the distance g to the background within the column, then

    d(x)^2 = min over x' of (x - x')^2 + g(x')^2

along the row. The compiled one finds the minimum in linear time as the lower envelope of parabolas
(Meijster, Roerdink, Hesselink: "A general algorithm for computing distance transforms in linear time", 2000);
the reference tries the shifts x - x' from small to large and stops when no shift can win any more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sam_ds.ops.compiled import NUMBA


def distance_transform(mask: Tensor, border: bool = True, implementation: str = "auto") -> Tensor:
    """Squared distance of every set pixel's centre to the nearest unset pixel's centre.

    Args:
        mask: bool [O, H, W].
        border: whether what lies outside the raster counts as unset.
        implementation: "reference" (torch, any device), "numba" (host memory), or "auto": the fastest that can run.

    Returns:
        int32 [O, H, W], 0 where the mask is unset. Without ``border`` a mask that is set everywhere has no background:
        its distances are at least (H + W)^2.
    """
    if implementation == "auto":
        implementation = "numba" if NUMBA and not mask.is_cuda else "reference"
    if implementation == "reference":
        return _reference(mask, border)
    if implementation == "numba":
        from sam_ds.ops import _distance_compiled  # numba takes half a second to import

        out = torch.empty(mask.shape, dtype=torch.int32)
        _distance_compiled.fill(mask.cpu().contiguous().numpy(), border, out.numpy())
        return out.to(mask.device)
    raise ValueError(f"distance_transform: no implementation {implementation!r}; use auto, reference or numba")


def _reference(mask: Tensor, border: bool) -> Tensor:
    height, width = mask.shape[1:]
    far = height + width
    g = torch.minimum(_run_length(mask, far, border), _run_length(mask.flip(1), far, border).flip(1))  # [O, H, W]
    squared = g * g
    best = squared.clone()
    if border:
        x = torch.arange(width, dtype=torch.int32, device=mask.device)
        best = torch.minimum(best, torch.minimum(x + 1, width - x) ** 2)
    for shift in range(1, width):
        if shift % 8 == 1 and shift * shift >= int(best.max()):  # every eighth: reading it waits for the device
            break
        best[..., shift:] = torch.minimum(best[..., shift:], squared[..., :-shift] + shift * shift)
        best[..., :-shift] = torch.minimum(best[..., :-shift], squared[..., shift:] + shift * shift)
    return best


def _run_length(mask: Tensor, far: int, border: bool) -> Tensor:
    """int32 [O, H, W]: distance to the nearest unset pixel above, at most ``far``."""
    rows = torch.arange(mask.shape[1], dtype=torch.int32, device=mask.device)[:, None]
    unset = torch.where(mask, -1 if border else -far, rows)
    return (rows - unset.cummax(1).values).clamp(max=far)
