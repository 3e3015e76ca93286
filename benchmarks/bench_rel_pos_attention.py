"""SAM's attention with relative positions: ours beside everything a user could take instead.

All start from the output of the qkv layer in picture layout, [B, 64, 64, 3, heads, D] bfloat16, and end in picture
layout: padding, cutting into windows and putting together again count for whoever needs them. Forward, backward (the
gradients of qkv, pad token and both tables) and both.

  triton          ours
  eager           the formula in bfloat16: the bias added to the whole score matrix
  eager autocast  the same under autocast, as public code runs it: softmax in float32
  sdpa dense      torch's scaled_dot_product_attention with the bias as a dense mask
  sdpa augmented  the same, exact, with the bias as further channels of q and k: our fallback
  blocked         a block of queries at a time, for caches of CPUs
  flex            FlexAttention, compiled; the bias is read score by score (not with --no-compile)
  no bias         scaled_dot_product_attention without any bias: wrong numbers, what speed is measured against

On a CPU the kernel is interpreted, at a tiny size: times say nothing, saved bytes do.

  python benchmarks/bench_rel_pos_attention.py [--head-dim 64 80] [--batch 1] [--no-compile] [--no-save]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from kernel_timing import DEVICE, Floor, compare
from torch import Tensor

if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

from common import RESULTS, append_rows

from sam_ds.ops.rel_pos_attention import (
    attend_grids,
    join_windows,
    rel_pos_attention,
    split_windows,
)

HEADS = {64: 12, 80: 16}  # ViT-B's and ViT-H's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-dim", type=int, nargs="+", default=[64, 80] if DEVICE == "cuda" else [64])
    parser.add_argument("--batch", type=int, default=1, help="pictures")
    parser.add_argument("--grid", type=int, default=64 if DEVICE == "cuda" else 16, help="tokens along a side")
    parser.add_argument("--no-compile", action="store_true", help="leave FlexAttention out")
    parser.add_argument("--no-save", action="store_true", help="do not add to benchmarks/results/kernels.csv")
    args = parser.parse_args()
    for head_dim in args.head_dim:
        for window in (0, 14):
            rows = measure_case(args, head_dim, window)
            if not args.no_save:
                append_rows(RESULTS / "kernels.csv", rows)


def measure_case(args: argparse.Namespace, head_dim: int, window: int) -> list[dict[str, object]]:
    heads = HEADS.get(head_dim, 16) if DEVICE == "cuda" else 1
    inputs = make_inputs(args.batch, args.grid, heads, head_dim, window)
    name = f"rel_pos_attention {'window' if window else 'global'}"
    shape = f"{args.batch}x{args.grid}x{args.grid} heads {heads}x{head_dim}"
    chosen = providers(window, args.no_compile or DEVICE == "cpu")
    return compare(name, shape, chosen, inputs, *floors(inputs[0], window))


def make_inputs(batch: int, grid: int, heads: int, head_dim: int, window: int) -> list[Tensor]:
    """qkv, tables, pad token."""
    torch.manual_seed(0)
    rows = 2 * (window or grid) - 1
    shapes = [(batch, grid, grid, 3, heads, head_dim), (rows, head_dim), (rows, head_dim), (3, heads, head_dim)]
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    inputs = [torch.randn(shape, device=DEVICE, dtype=dtype) for shape in shapes]
    return [x.requires_grad_() for x in (inputs if window else inputs[:3])]


def floors(qkv: Tensor, window: int) -> tuple[Floor, Floor]:
    """Forward two products over all scores; backward seven, of which two are the scores and their gradients again."""
    batch, height, width, _, heads, head_dim = qkv.shape
    side = window or height
    scores = batch * heads * (-(-height // side) * -(-width // side)) * float(side * side) ** 2
    tensor = batch * height * width * heads * head_dim * qkv.element_size()
    # q, k, v and the answer; both backward kernels read q, k, v and the answer's gradient, one the answer, and write.
    return Floor(2 * 2 * scores * head_dim, 4 * tensor), Floor(7 * 2 * scores * head_dim, 12 * tensor)


def providers(window: int, no_compile: bool) -> dict[str, Callable[..., Tensor]]:
    def op(implementation: str) -> Callable[..., Tensor]:
        def run(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, pad: Tensor | None = None) -> Tensor:
            return rel_pos_attention(qkv, rel_h, rel_w, pad, window, implementation)

        return run

    def autocast(*inputs: Tensor) -> Tensor:
        with torch.autocast(DEVICE, torch.bfloat16):
            return op("reference")(*inputs)

    def attention(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, pad: Tensor | None = None) -> Tensor:
            if pad is None:
                return attend(qkv, rel_h, rel_w)
            windows, rows, columns = split_windows(qkv, pad, window)
            return join_windows(attend(windows, rel_h, rel_w), rows, columns, *qkv.shape[1:3])

        return run

    chosen = {
        "triton": op("triton"),
        "eager": op("reference"),
        "eager autocast": autocast,
        "sdpa dense": attention(partial(attend_grids, dense)),
        "sdpa augmented": op("sdpa"),
        "blocked": op("blocked"),
        "no bias": attention(no_bias),
    }
    if not no_compile:
        chosen["flex"] = attention(partial(attend_grids, torch.compile(flex, dynamic=False)))
    return chosen


def dense(q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    bias = (bias_h.unsqueeze(-1) + bias_w.unsqueeze(-2)).flatten(4).flatten(2, 3)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def no_bias(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    batch, height, width, _, heads, head_dim = qkv.shape
    q, k, v = qkv.permute(3, 0, 4, 1, 2, 5).reshape(3, batch, heads, height * width, head_dim).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height, width, heads, head_dim)


def flex(q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    width = bias_w.shape[-1]
    by_row, by_column = bias_h.flatten(2, 3), bias_w.flatten(2, 3)  # [B, heads, N, H] and [B, heads, N, W]

    def add_bias(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + by_row[batch, head, query, key // width] + by_column[batch, head, query, key % width]

    return flex_attention(q, k, v, score_mod=add_bias)


if __name__ == "__main__":
    main()
