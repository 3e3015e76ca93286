"""What the compiler makes of a kernel, read without a GPU: registers, spills, shared memory and machine instructions.

Kernels are compiled ahead of time for a GPU generation by the ptxas that Triton brings along, and the machine code is
taken apart by its nvdisasm. The cases are the shapes of ViT-H: what is shipped is what is looked at.

  python -m sam_ds_kernels.static [--generation sm80] [--csv FILE]
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import configs
from .launch import Launch, recording
from .machine_code import Code, families, macs, parse
from .mask_loss import run_backward as mask_loss_backward
from .mask_loss import run_forward as mask_loss_forward
from .rel_pos_attention_global import run_backward as global_backward
from .rel_pos_attention_global import run_forward as global_forward
from .rel_pos_attention_window import run_backward as window_backward
from .rel_pos_attention_window import run_forward as window_forward
from .work import name, work

HEAD_DIMS = (64, 80, 128, 256)
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
    head_dim: int  # 0: not an attention
    block_m: int  # of the mask loss: rows and columns of a strip
    block_n: int
    num_warps: int
    num_stages: int
    registers: int  # a thread
    spilled: int  # bytes a thread, stack frame and local memory
    shared: int  # bytes a program
    instructions: int  # all
    matrix: int  # of them those of the matrix units: HMMA, HGMMA
    special: int  # of the special function unit: MUFU
    atomics: int
    loops: int  # one after the other
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
    """head_dim and launch of every kernel, bfloat16, at ViT-H's shapes."""
    for head_dim in HEAD_DIMS:
        with recording(generation) as launches:
            _attention(head_dim)
        for launch in launches:
            yield head_dim, launch
    with recording(generation) as launches:
        _mask_loss()
    for launch in launches:
        yield 0, launch


def _attention(head_dim: int) -> None:
    qkv = _meta(1, 64, 64, 3, 16, head_dim)
    tables = _meta(127, head_dim), _meta(127, head_dim)
    out, lse = global_forward(qkv, *tables)
    global_backward(out, qkv, *tables, out, lse)
    inputs = qkv, _meta(3, 16, head_dim), _meta(27, head_dim), _meta(27, head_dim)
    out, lse = window_forward(*inputs, 14)
    window_backward(out, *inputs, out, lse, 14)


def _mask_loss() -> None:
    logits, truth = _meta(64, 3, 256, 256), _meta(64, 1024, 1024, dtype=torch.uint8)
    valid = _meta(64, 2, dtype=torch.int32)
    focal, dice, _, *kept = mask_loss_forward(logits, truth, valid, 0.25, 2.0)
    mask_loss_backward(focal, dice, logits, truth, valid, *kept, 0.25, 2.0)


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@dataclass(frozen=True)
class Compiled:
    registers: int
    spilled: int
    shared: int
    code: Code


def compile_ahead(launch: Launch, generation: str) -> Compiled:
    arguments = dict(launch.arguments)
    options = {key: arguments.pop(key) for key in ("num_warps", "num_stages") if key in arguments}
    source = _source(launch, arguments)
    target = GPUTarget("cuda", configs.GENERATIONS[generation], 32)
    compiled = triton.compile(source, target=target, options={**options, "enable_fp_fusion": True})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", file.name)
        text = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found, usage
    return Compiled(int(found[1]), int(found[2]) + int(found[3]), compiled.metadata.shared, parse(text))


def examine(launch: Launch, generation: str, head_dim: int = 0) -> Static:
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
        head_dim=head_dim,
        block_m=of.get("BLOCK_M", of.get("ROWS", 0)),
        block_n=of.get("BLOCK_N", of.get("LANES", 0)),
        num_warps=warps,
        num_stages=of.get("num_stages", 0),
        registers=compiled.registers,
        spilled=compiled.spilled,
        shared=compiled.shared,
        instructions=len(code.names),
        matrix=counts["HMMA"] + counts["HGMMA"],
        special=counts["MUFU"],
        atomics=counts["ATOM"] + counts["ATOMG"] + counts["RED"],
        loops=len(code.loops),
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
    for generation in args.generation or configs.GENERATIONS:
        for head_dim, launch in cases(generation):
            row = asdict(examine(launch, generation, head_dim))
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
