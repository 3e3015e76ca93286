"""Masks from run lengths straight into the model's frame, without the raster of the whole picture.

Every pixel of the output looks up one pixel of the source, so what comes out is to the bit what decoding the mask
and then indexing it would give.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sam_ds.ops.choice import by_kernels, choose, forced
from sam_ds.ops.compiled import NUMBA
from sam_ds.types import MaskRuns

IMPLEMENTATIONS = ("auto", "reference", "numba", "triton")

# Largest number of pixels the reference looks up at once: its int64 temporaries are then at most 128 MiB each.
_CHUNK_PIXELS = 2**24


def rasterize(runs: MaskRuns, to_source: Tensor, size: tuple[int, int], implementation: str = "auto") -> Tensor:
    """Draw masks as seen through a 2x3 matrix each.

    Pixel (x, y) of the output shows the source pixel floor(M @ (x + .5, y + .5, 1)), computed in float32 as
    ``(m0 * x + m1 * y) + m2`` with every product and sum rounded; outside the source it is 0.

    Args:
        runs: O masks.
        to_source: float32 [O, 2, 3], on the device of ``runs``.
        size: height and width of the output.
        implementation: "reference" (torch, any device, no host sync), "numba" (host memory), "triton" (CUDA) or "auto".

    Returns:
        uint8 [O, *size], 0 or 1.

    Raises:
        ValueError: an unknown implementation, or inputs that the kernel does not take when it is asked for.
    """
    if to_source.shape != (len(runs), 2, 3):
        raise ValueError(f"rasterize: {len(runs)} masks need as many 2x3 matrices, not {list(to_source.shape)}")
    wanted = forced("rasterize", implementation, IMPLEMENTATIONS, to_source.device)
    matrices = to_source.float().contiguous()
    found = by_kernels("rasterize", wanted, to_source.device, lambda: _triton(runs, matrices, size))
    if found is not None:
        return found
    compiled = "numba" if NUMBA and to_source.device.type == "cpu" else "reference"
    if (choose("rasterize", compiled) if wanted == "auto" else wanted) == "reference":
        return _reference(runs, matrices, size)
    from sam_ds.ops import _rasterize_compiled  # numba takes half a second to import

    out = torch.zeros(len(runs), *size, dtype=torch.uint8)
    _rasterize_compiled.fill(runs.ends.numpy(), runs.offsets.numpy(), runs.sizes.numpy(), matrices.numpy(), out.numpy())
    return out


def _triton(runs: MaskRuns, matrices: Tensor, size: tuple[int, int]) -> Tensor:
    from sam_ds_kernels import rasterize_runs

    return rasterize_runs(runs.ends, runs.offsets, runs.sizes, matrices, *size)


def _reference(runs: MaskRuns, to_source: Tensor, size: tuple[int, int]) -> Tensor:
    """Count the ends up to every pixel's index by one binary search over the ends of all masks.

    Each mask's ends are lifted by its number times 2^32, above every end of the masks before it, which makes the
    whole list ascending.
    """
    height, width = size
    num_masks, device = len(runs), to_source.device
    mask = torch.arange(num_masks, device=device)
    lengths = runs.offsets.diff()
    lifted = runs.ends + torch.repeat_interleave(mask, lengths, output_size=runs.ends.numel()) * 2**32  # int64 [R]
    x = torch.arange(width, device=device) + 0.5
    y = (torch.arange(height, device=device) + 0.5)[:, None]
    out = torch.empty(num_masks, height, width, dtype=torch.uint8, device=device)
    step = max(1, _CHUNK_PIXELS // (height * width))
    for start in range(0, num_masks, step):
        part = slice(start, start + step)
        m = to_source[part, :, :, None, None]  # [o, 2, 3, 1, 1]
        source = ((m[:, :, 0] * x + m[:, :, 1] * y) + m[:, :, 2]).floor()  # [o, 2, H, W]
        limits = runs.sizes[part].flip(1)[:, :, None, None]  # [o, 2, 1, 1]  width, height
        inside = ((source >= 0) & (source < limits)).all(1)
        column, row = torch.where(inside[:, None], source, 0).long().unbind(1)
        index = column * limits[:, 1] + row + (mask[part] * 2**32)[:, None, None]  # int64 [o, H, W]
        passed = torch.searchsorted(lifted, index, right=True) - runs.offsets[:-1][part, None, None]
        out[part] = inside & (passed % 2 == 1)
    return out
