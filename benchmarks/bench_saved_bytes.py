"""Bytes kept from forward to backward by attention of one ViT-H layer and by the mask loss of 64 objects.

Counted, not measured: the ops run on tensors without data, in bfloat16, and every storage that autograd keeps is
counted once; inputs that the backward reads again (qkv, logits, truth) count for all.

  python benchmarks/bench_saved_bytes.py [--no-save]
"""

from __future__ import annotations

import argparse
import os

os.environ["TRITON_INTERPRET"] = "1"  # the kernels are only asked for the shapes of their answers

import torch
from common import RESULTS, append_rows
from kernel_timing import saved_bytes
from torch import Tensor

from sam_ds.ops.mask_loss import mask_loss
from sam_ds.ops.rel_pos_attention import rel_pos_attention

OBJECTS, SIDE = 64, 256  # of the logits; the truth's side is 4 times that


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-save", action="store_true", help="do not add to benchmarks/results/saved_bytes.csv")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    for name, counts in (("global", attention(0)), ("window", attention(14)), ("mask loss", losses())):
        for provider, count in counts.items():
            ratio = count / counts["triton"]
            rows.append({"op": name, "provider": provider, "mb": round(count / 1e6, 2), "times_ours": round(ratio, 1)})
            print(f"{name:10} {provider:10} {count / 1e6:10.2f} MB  {ratio:7.1f} times ours")
    if not args.no_save:
        append_rows(RESULTS / "saved_bytes.csv", rows)


def attention(window: int) -> dict[str, int]:
    """By implementation: 16 heads of 80 channels on 64 x 64 tokens."""
    rows = 2 * (window or 64) - 1
    qkv, rel_h, rel_w, pad = (
        torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for shape in ((1, 64, 64, 3, 16, 80), (rows, 80), (rows, 80), (3, 16, 80))
    )

    def run(implementation: str) -> Tensor:
        return rel_pos_attention(qkv, rel_h, rel_w, pad if window else None, window, implementation)

    return {name: saved_bytes(lambda n=name: run(n)) for name in ("triton", "reference")}


def losses() -> dict[str, int]:
    """By implementation, of all three masks."""
    logits = torch.empty(OBJECTS, 3, SIDE, SIDE, dtype=torch.bfloat16, device="meta", requires_grad=True)
    truth = torch.empty(OBJECTS, 4 * SIDE, 4 * SIDE, dtype=torch.bool, device="meta")
    valid = torch.empty(OBJECTS, 2, dtype=torch.int32, device="meta")

    def run(implementation: str) -> object:
        return mask_loss(logits, truth, valid, implementation=implementation)

    return {name: saved_bytes(lambda n=name: run(n)) for name in ("triton", "fused", "reference")}


if __name__ == "__main__":
    main()
