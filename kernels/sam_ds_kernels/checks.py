"""What the kernels ask of their inputs, said in one line that has the values."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import INTERPRETED

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LARGEST_AXIS = 65_535  # programs along the second axis of a launch
LARGEST_INDEX = 2**31 - 1  # programs along the first axis, and places within a picture or mask
HEAD_DIMS = (8, 256)  # lowest and highest, in steps of 8: 16 bytes, what one load instruction takes


class Refused(ValueError):
    """The kernels do not take these inputs; nothing has been started."""


def check_attention(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, spans: tuple[int, int]) -> None:
    """
    Args:
        qkv: to be [B, H, W, 3, heads, D], contiguous.
        rel_h, rel_w: to be [2 * span - 1, D] each.
        spans: how many tokens attention reaches over, down and across.

    Raises:
        ValueError: something else.
    """
    if qkv.dim() != 6 or qkv.shape[3] != 3 or 0 in qkv.shape:
        raise Refused(f"qkv must be [B, H, W, 3, heads, D] and not empty, not {list(qkv.shape)}")
    head_dim = qkv.shape[-1]
    low, high = HEAD_DIMS
    if not low <= head_dim <= high or head_dim % 8:
        raise Refused(f"heads must have {low} to {high} channels, a multiple of 8, not {head_dim}")
    windows = -(-qkv.shape[1] // max(1, spans[0])) * -(-qkv.shape[2] // max(1, spans[1]))
    programs = qkv.shape[0] * windows * qkv.shape[4]
    if programs > LARGEST_AXIS:
        raise Refused(f"pictures x windows x heads must be at most {LARGEST_AXIS}, not {programs}: use fewer pictures")
    check_index("values of a picture's qkv", qkv[0].numel())
    if qkv.dtype not in DTYPES:
        raise Refused(f"qkv must be one of {', '.join(map(str, DTYPES))}, not {qkv.dtype}")
    check_device("qkv", qkv)
    check_contiguous("qkv", qkv)
    for name, table, span in (("rel_h", rel_h, spans[0]), ("rel_w", rel_w, spans[1])):
        check_like(name, table, qkv, (2 * span - 1, head_dim))


def check_index(name: str, count: int) -> None:
    """Raise ValueError unless the kernels can count so far."""
    if count > LARGEST_INDEX:
        raise Refused(f"{name} must be at most {LARGEST_INDEX}, not {count}")


def check_like(name: str, x: Tensor, other: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless ``x`` has the shape, and the type and device of ``other``."""
    if tuple(x.shape) != shape or x.dtype != other.dtype or x.device != other.device:
        raise Refused(
            f"{name} must be {list(shape)} {other.dtype} on {other.device}, not {list(x.shape)} {x.dtype} on {x.device}"
        )


def check_device(name: str, x: Tensor) -> None:
    """Raise ValueError unless kernels can run where ``x`` is."""
    if x.device.type != "cuda" and not INTERPRETED:
        raise Refused(f"{name} is on {x.device}; the kernels run on CUDA, or anywhere with TRITON_INTERPRET=1")


def check_contiguous(name: str, x: Tensor) -> None:
    if not x.is_contiguous():
        raise Refused(f"{name} must be contiguous, not of strides {list(x.stride())} at shape {list(x.shape)}")


def aligned(x: Tensor) -> Tensor:
    """``x``, or a copy if it begins where no load of 16 bytes may: a part of a buffer can begin anywhere."""
    return x.clone() if x.data_ptr() % 16 else x
