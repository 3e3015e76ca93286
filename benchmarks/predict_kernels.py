"""How long each kernel should take on GPUs that are not here: predicted from its machine code, not measured.

A multiprocessor's four parts start one instruction a cycle each, and every kind of instruction has a unit that takes a
warp's 32 lanes in so many cycles. The instructions that a program executes (its loops' as often as the maths says they
are walked) fill these units for a time:

  overlapped_us   the slowest unit's time, or that of the memory if it is longer: all others hide behind it
  in_turn_us      the sum over units: nothing hides (the start of an instruction, no unit's time, left out)

Waiting for memory, barriers and caches is in neither; programs are shared out evenly, and the last round counts whole.
The floor is what no kernel of this kind can beat: its products at the datasheet's peak, or what the op is given and
gives moved once; what kernels hand each other counts for their own time only.

  python benchmarks/predict_kernels.py [--no-save]
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Iterable

import torch
from common import RESULTS, append_rows
from gpus import GPUS, Gpu

from sam_ds_kernels import static
from sam_ds_kernels.launch import Launch
from sam_ds_kernels.machine_code import Code, families, macs
from sam_ds_kernels.work import name, work

_FLOAT = ("FADD", "FMUL", "FFMA")
_SPECIAL = ("MUFU", "I2F", "F2I", "F2F", "I2FP", "F2IP")
_MEMORY = ("LD", "ST", "LDG", "STG", "LDS", "STS", "LDSM", "STSM", "LDGSTS", "SHFL", "UTMALDG", "ATOMS", "LDC", "LDCU")
_MATRIX = ("HMMA", "HGMMA")
_LANES = {"special": 4, "memory": 8, "other": 16}  # a cycle and part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-save", action="store_true", help="do not write benchmarks/results/kernels_predicted.csv")
    args = parser.parse_args()
    rows = []
    for gpu in GPUS:
        for size, launch in static.cases(gpu.generation):
            if launch.tensors[0].dtype != torch.bfloat16:
                continue  # not what these peaks are for
            row = predict(launch, size, gpu)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows.append(row)
    if not args.no_save:
        (RESULTS / "kernels_predicted.csv").unlink(missing_ok=True)
        append_rows(RESULTS / "kernels_predicted.csv", rows)


def predict(launch: Launch, size: int, gpu: Gpu) -> dict[str, object]:
    """A row of the table; times of one picture at ViT-H's shapes, mask loss of 64 objects with three masks."""
    compiled, needed = static.compile_ahead(launch, gpu.generation), work(launch)
    warps = launch.arguments.get("num_warps", 4)
    resident = programs_at_once(compiled.registers, compiled.shared, warps, gpu)
    programs = -(-needed.programs // gpu.multiprocessors)  # of the busiest multiprocessor
    cycles = unit_cycles(compiled.code, needed.trips, gpu)
    unit = max(cycles, key=cycles.__getitem__)
    microseconds = programs * warps / 4 / (gpu.ghz * 1e3)  # a cycle of every warp's
    memory = 1e6 * needed.moved_bytes / gpu.bandwidth
    floor = 1e6 * max(needed.floor_flops / gpu.flops, needed.floor_bytes / gpu.bandwidth)
    overlapped = max(cycles[unit] * microseconds, memory)
    in_turn = max((cycles.total() - cycles["issue"]) * microseconds, overlapped)
    return {
        "gpu": gpu.name,
        "kernel": name(launch),
        "size": size,
        "programs": needed.programs,
        "warps_at_once": resident * warps,  # of 64
        "floor_us": round(floor, 1),
        "overlapped_us": round(overlapped, 1),
        "in_turn_us": round(in_turn, 1),
        "of_floor": round(floor / overlapped, 2),
        "slowest_unit": unit if cycles[unit] * microseconds > memory else "device memory",
    }


def programs_at_once(registers: int, shared: int, warps: int, gpu: Gpu) -> int:
    """On a multiprocessor: registers come in steps of 8 a thread, a program takes 1 KiB of shared memory more."""
    by_registers = gpu.registers // (-(-registers // 8) * 8 * 32 * warps)
    return min(by_registers, gpu.shared // (shared + 1024), 64 // warps, 32)


def unit_cycles(code: Code, trips: int, gpu: Gpu) -> collections.Counter[str]:
    """How long one warp's program fills each unit of its part, in cycles."""
    total: collections.Counter[str] = collections.Counter()
    for names, times in ((code.once_names(), 1), *((loop, trips) for loop in code.loop_names())):
        for unit, cycles in _cycles(names, gpu).items():
            total[unit] += times * cycles
    return total


def _cycles(names: Iterable[str], gpu: Gpu) -> dict[str, float]:
    names = tuple(names)
    counts = families(names)
    found = {
        "float": sum(counts[x] for x in _FLOAT) * 32 / gpu.float_lanes,
        "special": sum(counts[x] for x in _SPECIAL) * 32 / _LANES["special"],
        "memory": sum(counts[x] for x in _MEMORY) * 32 / _LANES["memory"],
        "matrix": macs(names) / gpu.macs,
        "issue": float(len(names)),
    }
    known = {*_FLOAT, *_SPECIAL, *_MEMORY, *_MATRIX}
    found["other"] = sum(count for x, count in counts.items() if x not in known) * 32 / _LANES["other"]
    return found


if __name__ == "__main__":
    main()
