"""How much there is to compute in one operation, and which unit of the machine computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

MATRIX, ATTENTION, LOSS, MEMORY = "matrix products", "attention", "mask loss", "memory"
# Instructions a pixel and mask, forward and backward alike: what the kernels' machine code has (their static table).
_LOSS_INSTRUCTIONS = 40


def kind_and_flops(function: Any, args: tuple[Any, ...], out: Any) -> tuple[str, float]:
    """What an operation is limited by, and its floating-point operations (two a multiply-add), 0 for ``MEMORY``.

    Args:
        function: an overload of an operator, as a dispatch mode is given it.
        args: its arguments.
        out: what it returned.
    """
    packet = function.overloadpacket
    if packet in flop_registry:
        kind = ATTENTION if "attention" in str(packet) else MATRIX
        return kind, float(flop_registry[packet](*args, out_val=out))
    own = _OWN.get(str(packet))
    return own(args) if own else (MEMORY, 0.0)


def _attention(products: int, first: int) -> Callable[[tuple[Any, ...]], tuple[str, float]]:
    """``products`` of the scores' size; the arguments begin with ``first`` gradients."""

    def count(args: tuple[Any, ...]) -> tuple[str, float]:
        qkv = args[first]  # [B, H, W, 3, heads, D]
        batch, height, width, _, heads, head_dim = qkv.shape
        tokens, grids = height * width, batch
        if isinstance(args[-1], int):  # windows
            tokens, grids = args[-1] ** 2, batch * -(-height // args[-1]) * -(-width // args[-1])
        return ATTENTION, 2.0 * products * grids * heads * tokens**2 * head_dim

    return count


def _sdpa_for_cpu(products: int, first: int) -> Callable[[tuple[Any, ...]], tuple[str, float]]:
    def count(args: tuple[Any, ...]) -> tuple[str, float]:
        q, k = args[first], args[first + 1]  # [B, heads, N, D]
        return ATTENTION, 2.0 * products * q.numel() * k.shape[-2]

    return count


def _mask_loss(logits: int, truth: int) -> Callable[[tuple[Any, ...]], tuple[str, float]]:
    def count(args: tuple[Any, ...]) -> tuple[str, float]:
        return LOSS, float(_LOSS_INSTRUCTIONS * args[logits].shape[1] * args[truth].numel())

    return count


# The backward of attention makes the scores anew, in each of its two kernels: 7 products, 5 in the CPU's.
_OWN = {
    "sam_ds.rel_pos_attention_global": _attention(2, 0),
    "sam_ds.rel_pos_attention_window": _attention(2, 0),
    "sam_ds.rel_pos_attention_global_backward": _attention(7, 1),
    "sam_ds.rel_pos_attention_window_backward": _attention(7, 1),
    "aten._scaled_dot_product_flash_attention_for_cpu": _sdpa_for_cpu(2, 0),
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": _sdpa_for_cpu(5, 1),
    "sam_ds.mask_loss": _mask_loss(0, 1),
}


def moved_bytes(args: tuple[torch.Tensor, ...], outs: tuple[torch.Tensor, ...]) -> int:
    """What an operation reads and writes, if no cache holds any of it; 0 if its answers are views."""
    given = {x.untyped_storage()._cdata for x in args}
    if outs and all(x.untyped_storage()._cdata in given for x in outs) and not _writes(outs, args):
        return 0
    return sum(x.numel() * x.element_size() for x in (*args, *outs))


def _writes(outs: tuple[torch.Tensor, ...], args: tuple[torch.Tensor, ...]) -> bool:
    """Whether an answer is one of the arguments, as of an operation in place."""
    return any(out is x for out in outs for x in args)
