"""Masks from run lengths into the model's frame: every pixel of the output looks up one pixel of the source.

A mask is the list of the indices at which its runs end, in the order of columns, the first run being background. A
pixel belongs to it when an odd number of runs have ended before or at its index: a binary search over the mask's ends,
in which all lanes of a program take as many steps, for they search the same list.

The affine map is computed as ``(m0 * x + m1 * y) + m2`` with every product and sum rounded, so the compiler must not
fuse them: the answer is then to the bit that of decoding the mask and indexing it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import Refused, check_contiguous, check_device, check_index, check_like
from .launch import launch

_BLOCK = 1024  # pixels a program


@triton.jit
def _kernel(
    ENDS,  # int [R]  of all masks, one after the other
    OFFSETS,  # int64 [O + 1]  where each mask's begin
    SIZES,  # int [O, 2]  height and width of the source
    TO_SOURCE,  # float32 [O, 2, 3]
    OUT,  # uint8 [O, HEIGHT, WIDTH]
    num_pixels,
    width,
    BLOCK: tl.constexpr,
):
    tiles = (num_pixels + BLOCK - 1) // BLOCK  # of a mask; the launch's first axis has room for any number of masks
    item = (tl.program_id(0) // tiles).to(tl.int64)
    pixels = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    x = (pixels % width).to(tl.float32) + 0.5
    y = (pixels // width).to(tl.float32) + 0.5
    TO_SOURCE += 6 * item
    column = tl.floor((tl.load(TO_SOURCE) * x + tl.load(TO_SOURCE + 1) * y) + tl.load(TO_SOURCE + 2))
    row = tl.floor((tl.load(TO_SOURCE + 3) * x + tl.load(TO_SOURCE + 4) * y) + tl.load(TO_SOURCE + 5))
    source_height = tl.load(SIZES + 2 * item)
    source_width = tl.load(SIZES + 2 * item + 1)
    ok = (pixels < num_pixels) & (column >= 0) & (column < source_width) & (row >= 0) & (row < source_height)
    index = tl.where(ok, column, 0.0).to(tl.int64) * source_height + tl.where(ok, row, 0.0).to(tl.int64)

    start = tl.load(OFFSETS + item)
    count = (tl.load(OFFSETS + item + 1) - start).to(tl.int32)  # of the ends among which the answer still lies
    ENDS += start
    passed = tl.zeros((BLOCK,), tl.int32)
    while count > 1:
        half = count // 2
        middle = tl.load(ENDS + passed + (half - 1))
        passed += tl.where(middle <= index, half, 0)
        count -= half
    if count == 1:
        passed += (tl.load(ENDS + passed) <= index).to(tl.int32)
    tl.store(OUT + item * num_pixels + pixels, (ok & (passed % 2 == 1)).to(tl.uint8), mask=pixels < num_pixels)


def run(ends: Tensor, offsets: Tensor, sizes: Tensor, to_source: Tensor, height: int, width: int) -> Tensor:
    out = torch.empty(len(sizes), height, width, dtype=torch.uint8, device=ends.device)
    if out.numel():
        grid = (triton.cdiv(height * width, _BLOCK) * len(sizes),)
        arguments = {"num_pixels": height * width, "width": width, "BLOCK": _BLOCK}
        launch(_kernel, grid, ends, offsets, sizes, to_source, out, **arguments, num_warps=4, enable_fp_fusion=False)
    return out


_rasterize = torch.library.custom_op("sam_ds::rasterize_runs", run, mutates_args=())


@_rasterize.register_fake
def _(ends: Tensor, offsets: Tensor, sizes: Tensor, to_source: Tensor, height: int, width: int) -> Tensor:
    return torch.empty(len(sizes), height, width, dtype=torch.uint8, device=ends.device)


def rasterize_runs(ends: Tensor, offsets: Tensor, sizes: Tensor, to_source: Tensor, height: int, width: int) -> Tensor:
    """Draw O masks as seen through a 2x3 matrix each.

    Pixel (x, y) of the output shows the source pixel floor(M @ (x + .5, y + .5, 1)); outside the source it is 0.

    Args:
        ends: int [R], where the runs of each mask end, ascending; its pixels are counted down the columns.
        offsets: int64 [O + 1], the first of each mask's ends, and R.
        sizes: int [O, 2], height and width of each source.
        to_source: float32 [O, 2, 3], the matrices.

    Returns:
        uint8 [O, height, width], 0 or 1.

    Raises:
        ValueError: a shape, type, device or layout that the kernel does not take; the message has the values.
    """
    count = len(sizes)
    if ends.dim() != 1 or ends.dtype not in (torch.int32, torch.int64):
        raise Refused(f"ends must be one row of int32 or int64, not {list(ends.shape)} {ends.dtype}")
    check_device("ends", ends)
    check_like("offsets", offsets, offsets.new_empty(0, dtype=torch.int64, device=ends.device), (count + 1,))
    check_like("sizes", sizes, sizes.new_empty(0, device=ends.device), (count, 2))
    if sizes.is_floating_point():
        raise Refused(f"sizes must be integers, not {sizes.dtype}")
    check_index("pixels of a mask", height * width + _BLOCK)
    check_index("pieces of all masks", count * triton.cdiv(height * width, _BLOCK))
    check_like("to_source", to_source, to_source.new_empty(0, dtype=torch.float32, device=ends.device), (count, 2, 3))
    for name, x in (("ends", ends), ("offsets", offsets), ("sizes", sizes), ("to_source", to_source)):
        check_contiguous(name, x)
    return _rasterize(ends, offsets, sizes, to_source, height, width)
