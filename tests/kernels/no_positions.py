"""The global forward kernel without position terms: what they cost is the difference.

Prints how many instructions a trip through either's loop has, as JSON.
"""

from __future__ import annotations

import dataclasses
import json

import torch
import triton
import triton.language as tl

from sam_ds_kernels import static
from sam_ds_kernels.configs import GENERATIONS
from sam_ds_kernels.tiles import attend, first_rows, load, scores, store, zeros

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def forward(
    QKV, OUT, LSE, scale, num_tokens, heads,
    WIDTH: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVEN_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, place = tl.program_id(1) % heads, tl.program_id(1).to(tl.int64)
    channels = heads * D
    QKV, OUT = first_rows(QKV, OUT, place // heads * num_tokens, head, channels, D)
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    query_ok = queries < num_tokens
    q = load(QKV + queries * 3 * channels, query_ok, D, D0, D1, EVEN_M)
    answer = zeros(BLOCK_M, D0, D1)
    highest = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    none = tl.zeros((BLOCK_M,), tl.float32)
    for first in range(0, num_tokens, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        keys, ok = QKV + columns * 3 * channels + channels, columns < num_tokens
        k = load(keys, ok, D, D0, D1, True)
        s = scores(q, k, None, PRECISION)
        v = load(keys + channels, ok, D, D0, D1, True)
        answer, highest, total = attend(s, v, none, answer, highest, total, scale * LOG2E, PRECISION)
    store(OUT + queries * channels, query_ok, answer, (1.0 / total)[:, None], D, D0, D1)
    tl.store(LSE + place * num_tokens + queries, highest + tl.log2(total), mask=query_ok)


def main() -> None:
    lengths = {}
    for generation in GENERATIONS:
        for size, launch in static.cases(generation):
            bfloat16 = launch.tensors[0].dtype == torch.bfloat16
            if static.name(launch) == "global_forward" and bfloat16 and size <= 128:
                arguments = {key: value for key, value in launch.arguments.items() if key != "height"}
                tensors = (launch.tensors[0], *launch.tensors[2:])  # all but the terms
                without = dataclasses.replace(launch, kernel=forward, tensors=tensors, arguments=arguments)
                pair = [static.compile_ahead(x, generation).code.loop_names() for x in (launch, without)]
                lengths[f"{generation} {size}"] = [len(loop) for (loop,) in pair]
    print(json.dumps(lengths))


if __name__ == "__main__":
    main()
