"""Find the fastest config of each kernel on the GPU at hand.

The config of today and every other candidate run their whole op, forward and backward, and are dropped unless outputs
and gradients are those of the definitions; then the kernel is timed alone. Candidates that the compiler refuses, that
ask for more shared memory than there is, or that spill registers are dropped too. What is found goes to the GPU
generation's file of configs, where the kernels find it.

On a CPU, with TRITON_INTERPRET=1, all of this runs at a tiny size, for the way it works: times say nothing.

  python -m sam_ds_kernels.tune [--ops global window mask_loss] [--sizes 64 80] [--output FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from torch import Tensor

from . import configs, definitions
from .configs import Config
from .launch import INTERPRETED, Launch, recording
from .mask_loss import mask_loss
from .rel_pos_attention_global import rel_pos_attention_global
from .rel_pos_attention_window import rel_pos_attention_window
from .work import name

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
# Largest error, of a tensor's largest value: several times what rounding gives. A wrong tile is off by a value itself.
TOLERANCE = {torch.bfloat16: 0.05, torch.float32: 1e-4}


@dataclass(frozen=True)
class Op:
    """What is tuned together: a function whose kernels run one after the other."""

    size: int  # of the configs
    kernels: tuple[str, ...]  # as the files of configs name them; ``work.name`` less what they begin with
    run: Callable[..., tuple[Tensor, ...]]
    definition: Callable[..., tuple[Tensor, ...]]
    inputs: tuple[Tensor, ...]  # those that require a gradient are differentiated
    candidates: tuple[Config, ...]


def attention_op(window: int, head_dim: int) -> Op:
    """One picture of ViT-B's (head_dim up to 64) or ViT-H's grid and heads."""
    grid, heads = (64, 12 if head_dim <= 64 else 16) if ON_GPU else (5, 1)
    window = min(window, 4) if not ON_GPU else window
    span = window or grid
    shapes = [(1, grid, grid, 3, heads, head_dim), (3, heads, head_dim), *[(2 * span - 1, head_dim)] * 2]
    qkv, pad, rel_h, rel_w = (torch.randn(shape, device=DEVICE, dtype=DTYPE).requires_grad_() for shape in shapes)
    kind = "window" if window else "global"
    parts = ("forward", "backward_queries", "backward_keys")
    kernels = tuple(configs.of_type(f"rel_pos_attention_{kind}_{part}", qkv) for part in parts)
    if window:
        return Op(
            head_dim,
            kernels,
            lambda *x: (rel_pos_attention_window(*x, window),),
            lambda *x: (definitions.windowed(*x, window),),
            (qkv, pad, rel_h, rel_w),
            tiles(),
        )
    return Op(
        head_dim,
        kernels,
        lambda *x: (rel_pos_attention_global(*x),),
        lambda *x: (definitions.attention(*x),),
        (qkv, rel_h, rel_w),
        tiles(),
    )


def mask_loss_op(width: int) -> Op:
    """The best masks of 64 objects, for forward and backward."""
    objects, side = (64, width) if ON_GPU else (1, min(width, 8))
    logits = torch.randn(objects, 1, side, side, device=DEVICE, dtype=DTYPE).requires_grad_()
    truth = torch.rand(objects, 4 * side, 4 * side, device=DEVICE) > 0.7
    valid = torch.full((objects, 2), 4 * side, dtype=torch.int32, device=DEVICE)
    return Op(
        width,
        ("mask_loss_forward", "mask_loss_backward"),
        lambda x: mask_loss(x, truth, valid)[:2],
        lambda x: definitions.mask_loss(x, truth, valid, 0.25, 2.0)[:2],
        (logits,),
        tuple({"rows": rows, "num_warps": warps} for rows in (4, 8, 16, 32, 64) for warps in (1, 2, 4, 8)),
    )


def tiles() -> tuple[Config, ...]:
    values = itertools.product((16, 32, 64, 128), (16, 32, 64), (2, 4, 8), (2, 3))
    return tuple(dict(zip(("block_m", "block_n", "num_warps", "num_stages"), x, strict=True)) for x in values)


def tune(op: Op, limit: int | None = None) -> Iterator[tuple[str, Config, float | None, str]]:
    """kernel, candidate, its milliseconds, and, where there are none, why."""
    expected = outputs_and_gradients(op.definition, [x.float() for x in op.inputs])
    for kernel in op.kernels:
        shipped = configs.config_for(kernel, op.size, op.inputs[0].device)
        for candidate in [shipped, *(x for x in op.candidates[:limit] if x != shipped)]:
            with configs.trying(kernel, candidate):
                yield kernel, candidate, *try_one(op, kernel, expected)


def try_one(op: Op, kernel: str, expected: list[Tensor]) -> tuple[float | None, str]:
    try:
        with recording() as launches:
            results = outputs_and_gradients(op.run, op.inputs)
    except (triton.TritonError, RuntimeError) as error:  # a pass of the compiler that fails is the latter
        return None, f"{type(error).__name__}: {str(error).splitlines()[0]}"
    errors = [float((x - right).abs().max() / right.abs().max()) for x, right in zip(results, expected, strict=True)]
    if wrong := [error for error in errors if not error <= TOLERANCE[DTYPE]]:  # NaN is one
        return None, f"wrong: error {wrong[0]:.2g} of the largest value"
    launch = next(x for x in launches if kernel.endswith(name(x)))
    if spilled := spills(launch):
        return None, f"spills {spilled} registers"
    return milliseconds(launch), ""


def outputs_and_gradients(function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> list[Tensor]:
    given = [x.detach().requires_grad_() for x in inputs]
    outputs = function(*given)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.rand(x.shape, generator=generator).to(DTYPE).to(x) for x in outputs]
    return [x.detach().float() for x in (*outputs, *torch.autograd.grad(outputs, given, weights))]


def spills(launch: Launch) -> int:
    """Registers a thread, as the driver reports them for the kernel as it ran."""
    if INTERPRETED:
        return 0
    return launch.start().n_spills


def milliseconds(launch: Launch) -> float:
    if ON_GPU:
        return triton.testing.do_bench(launch.start, warmup=10, rep=50, return_mode="median")
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        launch.start()
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", choices=["global", "window", "mask_loss"], default=[])
    parser.add_argument("--sizes", nargs="+", type=int, help="channels of a head, columns of a mask; default: all")
    parser.add_argument("--limit", type=int, help="try only so many candidates of each kernel")
    parser.add_argument("--output", type=Path, help="default: the file of this GPU's generation")
    args = parser.parse_args()
    if not ON_GPU and not (INTERPRETED and args.output):
        parser.exit(2, "tune: no CUDA device; TRITON_INTERPRET=1 and --output FILE show the way it works on a CPU\n")
    torch.manual_seed(0)
    generation = configs.generation(torch.device(DEVICE))
    output = args.output or configs.FOLDER / f"{generation}.json"
    table = json.loads((output if output.exists() else configs.FOLDER / f"{generation}.json").read_text())
    makers: dict[str, Callable[[int], Op]] = {
        "global": lambda size: attention_op(0, size),
        "window": lambda size: attention_op(14, size),
        "mask_loss": mask_loss_op,
    }
    for kind in args.ops or makers:
        for size in args.sizes or ([256] if kind == "mask_loss" else [64, 80, 120, 128]):
            for kernel, best, ms in fastest(makers[kind](size), args.limit):
                print(f"{kernel} {size}: {ms:.4f} ms {best}", flush=True)
                table[kernel][str(size)] = best
                write(output, table)


def fastest(op: Op, limit: int | None) -> Iterator[tuple[str, Config, float]]:
    found: dict[str, tuple[float, Config]] = {}
    for kernel, candidate, ms, why in tune(op, limit):
        print(f"  {kernel} {candidate}", f"{ms:.4f} ms" if ms is not None else why, flush=True)
        if ms is not None and (kernel not in found or ms < found[kernel][0]):
            found[kernel] = ms, candidate
    for kernel, (ms, candidate) in found.items():
        yield kernel, candidate, ms


def write(path: Path, table: dict[str, dict[str, Config]]) -> None:
    """JSON, an entry a line, sizes in order."""
    kernels = []
    for kernel, entries in table.items():
        lines = [f'    "{size}": {json.dumps(entries[size])}' for size in sorted(entries, key=int)]
        kernels.append(f'  "{kernel}": {{\n' + ",\n".join(lines) + "\n  }")
    path.write_text("{\n" + ",\n".join(kernels) + "\n}\n")


if __name__ == "__main__":
    sys.exit(main())
