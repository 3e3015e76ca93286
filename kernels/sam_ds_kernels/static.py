"""What the compiler makes of a kernel, read without a GPU: registers, spills, shared memory and machine instructions.

Kernels are compiled ahead of time for a GPU generation by the ptxas that Triton brings along, and the machine code is
taken apart by its nvdisasm. The cases are the shapes of ViT-H with heads of several widths, so that every shipped
config is looked at.

  python -m sam_ds_kernels.static [--generation sm80] [--csv FILE]
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import configs
from .launch import OPTIONS, Launch, recording
from .machine_code import Code, families, macs, parse
from .mask_loss import run_backward as mask_loss_backward
from .mask_loss import run_forward as mask_loss_forward
from .rel_pos_attention_global import run_backward as global_backward
from .rel_pos_attention_global import run_forward as global_forward
from .rel_pos_attention_window import largest_head_dim
from .rel_pos_attention_window import run_backward as window_backward
from .rel_pos_attention_window import run_forward as window_forward
from .work import name, work

HEAD_DIMS = (64, 80, 104, 128, 256)
FLOAT32_HEAD_DIMS = (64, 80, 128, 256)
MASK_WIDTHS = (64, 128, 256, 1024)  # of the logits
_POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Static:
    """One kernel as one GPU generation would run it. Multiply-adds and scores are those of a program."""

    kernel: str
    generation: str
    dtype: str
    size: int  # channels of a head, or columns of a mask
    block_m: int  # of the mask loss: rows and columns of a strip
    block_n: int
    num_warps: int
    num_stages: int
    registers: int  # a thread
    spilled: int  # bytes a thread, stack frame and local memory
    shared: int  # bytes a program
    instructions: int  # all
    matrix: int  # of them those of the matrix units: HMMA, HGMMA
    warpgroup: int  # of these HGMMA, sm_90's own, which needs tiles of 64 rows
    special: int  # of the special function unit: MUFU
    atomics: int
    loops: int  # one after the other
    loops_needed: int
    loop_instructions: int  # of the longest loop, as the next two
    loop_special: int
    loop_copies: int  # asynchronous, to shared memory: LDGSTS, UTMALDG
    loop_macs: int  # multiply-adds that the matrix units do in a trip through each loop
    loop_macs_needed: int  # by the maths
    once_macs: int  # outside of loops
    once_macs_needed: int
    loop_scores: int  # exponentials that the maths needs in a trip
    triton: str  # version


def cases(generation: str) -> Iterator[tuple[int, Launch]]:
    """Size (channels of a head, columns of a mask) and launch of every kernel."""
    shapes = [(_attention, size, torch.bfloat16) for size in HEAD_DIMS]
    shapes += [(_attention, size, torch.float32) for size in FLOAT32_HEAD_DIMS]
    shapes += [(_mask_loss, size, torch.bfloat16) for size in MASK_WIDTHS]
    for run, size, dtype in shapes:
        with recording(generation) as launches:
            run(size, dtype)
        for launch in launches:
            yield size, launch


def _attention(head_dim: int, dtype: torch.dtype) -> None:
    qkv = _meta(1, 64, 64, 3, 16, head_dim, dtype=dtype)
    tables = _meta(127, head_dim, dtype=dtype), _meta(127, head_dim, dtype=dtype)
    out, lse = global_forward(qkv, *tables)
    global_backward(out, qkv, *tables, out, lse)
    if head_dim > largest_head_dim(dtype):
        return
    pad, *tables = (_meta(*shape, head_dim, dtype=dtype) for shape in ((3, 16), (27,), (27,)))
    out, lse = window_forward(qkv, pad, *tables, 14)
    window_backward(out, qkv, pad, *tables, out, lse, 14)


def _mask_loss(width: int, dtype: torch.dtype) -> None:
    logits, truth = _meta(64, 3, width, width, dtype=dtype), _meta(64, 4 * width, 4 * width, dtype=torch.uint8)
    valid = _meta(64, 2, dtype=torch.int32)
    focal, dice, _, *kept = mask_loss_forward(logits, truth, valid, 0.25, 2.0)
    mask_loss_backward(focal, dice, logits, truth, valid, *kept, 0.25, 2.0)


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@dataclass(frozen=True)
class Compiled:
    registers: int
    spilled: int
    shared: int
    code: Code


def compile_ahead(launch: Launch, generation: str) -> Compiled:
    arguments = dict(launch.arguments)
    options = {key: arguments.pop(key) for key in OPTIONS if key in arguments}
    source = _source(launch, arguments)
    target = GPUTarget("cuda", configs.GENERATIONS[generation], 32)
    compiled = triton.compile(source, target=target, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", file.name)
        text = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found, usage
    return Compiled(int(found[1]), int(found[2]) + int(found[3]), compiled.metadata.shared, parse(text))


def examine(launch: Launch, generation: str, size: int) -> Static:
    """Compile a launch, and read what came out."""
    of = launch.arguments
    compiled, needed, warps = compile_ahead(launch, generation), work(launch), of.get("num_warps", 4)
    code = compiled.code
    counts = families(code.names)
    loop = max(code.loop_names(), key=len, default=())
    in_loop = families(loop)
    return Static(
        kernel=name(launch),
        generation=generation,
        dtype=str(launch.tensors[0].dtype).removeprefix("torch."),
        size=size,
        block_m=of.get("BLOCK_M", of.get("ROWS", 0)),
        block_n=of.get("BLOCK_N", of.get("LANES", 0)),
        num_warps=warps,
        num_stages=of.get("num_stages", 0),
        registers=compiled.registers,
        spilled=compiled.spilled,
        shared=compiled.shared,
        instructions=len(code.names),
        matrix=counts["HMMA"] + counts["HGMMA"],
        warpgroup=counts["HGMMA"],
        special=counts["MUFU"],
        atomics=counts["ATOM"] + counts["ATOMG"] + counts["RED"],
        loops=len(code.loops),
        loops_needed=needed.loops,
        loop_instructions=len(loop),
        loop_special=in_loop["MUFU"],
        loop_copies=in_loop["LDGSTS"] + in_loop["UTMALDG"],
        loop_macs=macs(loop) * warps,
        loop_macs_needed=needed.loop_macs,
        once_macs=macs(code.once_names()) * warps,
        once_macs_needed=needed.once_macs,
        loop_scores=needed.scores,
        triton=triton.__version__,
    )


def examine_all(generation: str) -> list[dict[str, object]]:
    """The table of a generation."""
    return [asdict(examine(launch, generation, size)) for size, launch in cases(generation)]


def _source(launch: Launch, arguments: dict[str, object]) -> ASTSource:
    """The kernel with the types, constants and alignments that its launcher would find."""
    values = [*launch.tensors, *(arguments[name] for name in launch.kernel.arg_names[len(launch.tensors) :])]
    signature, constants, attributes = {}, {}, {}
    for place, (parameter, value) in enumerate(zip(launch.kernel.params, values, strict=True)):
        aligned = isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        if isinstance(value, Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
        else:
            signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"
        if aligned:
            attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def _tool(name: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([str(path), *arguments], check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generation", choices=list(configs.GENERATIONS), action="append", help="default: all")
    parser.add_argument("--csv", type=Path, help="write the table here")
    args = parser.parse_args()
    rows = []
    # A process a generation: compiling keeps a core busy for minutes.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for table in pool.map(examine_all, args.generation or configs.GENERATIONS):
            for row in table:
                if not rows:
                    print(" ".join(row))
                print(" ".join(map(str, row.values())), flush=True)
                rows.append(row)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
