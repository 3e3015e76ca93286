"""What a launch has to do, from the maths alone: the measure for its machine code and for its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .launch import Launch

# Products of a score tile with a tile of D channels; the other products of a backward kernel are the scores made again.
_PRODUCTS = {"forward": 2, "backward_queries": 3, "backward_keys": 4}
_D_QKV_SHARE = {"forward": 0.0, "backward_queries": 1 / 3, "backward_keys": 2 / 3}  # that the kernel writes

# Statistics, position terms, and gradients or sums of one program's share: another way to do it might not need them.
_OURS = ("LSE", "DELTA", "TERMS", "D_TERMS", "D_TABLES", "D_PAD", "SUMS", "COEFFICIENTS")


@dataclass(frozen=True)
class Work:
    programs: int
    loops: int  # one after the other in the machine code, each with as many trips
    trips: int
    loop_macs: int  # multiply-adds of the matrix units in one trip, a program
    once_macs: int  # outside of the loops, a program
    scores: int  # exponentials in one trip, a program
    floor_flops: float  # of all programs, tiles that reach beyond the grid and position terms left out
    floor_bytes: float  # what the op is given and gives, read or written once
    moved_bytes: float  # with what our kernels keep for themselves or hand each other


def name(launch: Launch) -> str:
    """ "global_forward": the file and the function."""
    function = launch.kernel.fn
    return f"{function.__module__.rpartition('.')[2].removesuffix('_kernels')}_{function.__name__}"


def work(launch: Launch) -> Work:
    kind = name(launch)
    if kind.startswith("global"):
        return _global(launch)
    return _window(launch) if kind.startswith("window") else _mask_loss(launch)


def _global(launch: Launch) -> Work:
    of, kernel = launch.arguments, launch.kernel.__name__
    tokens = of["num_tokens"]
    tiles = -(-of["WIDTH"] // of["BLOCK_N"])
    over_keys = kernel != "backward_keys"
    return Work(
        programs=_programs(launch),
        loops=tiles if over_keys else 1,
        trips=of["height"] if over_keys else -(-tokens // of["BLOCK_M"]),
        loop_macs=_PRODUCTS[kernel] * of["BLOCK_M"] * of["BLOCK_N"] * (of["D0"] + of["D1"]),
        once_macs=0,
        scores=of["BLOCK_M"] * of["BLOCK_N"],
        floor_flops=2.0 * _PRODUCTS[kernel] * launch.grid[1] * tokens**2 * of["D"],
        floor_bytes=_bytes(launch, but=_OURS),
        moved_bytes=_bytes(launch),
    )


def _window(launch: Launch) -> Work:
    of, kernel = launch.arguments, launch.kernel.__name__
    tokens, channels, scores = of["S"] ** 2, of["D0"] + of["D1"], of["BLOCK_M"] * of["BLOCK_N"]
    # Outside: q with both tables, and (queries) back to q and to the tables. Inside: TERMS with E, and back.
    with_tables = {"forward": 2, "backward_queries": 6, "backward_keys": 0}[kernel]
    with_terms = {"forward": 1, "backward_queries": 2, "backward_keys": 1}[kernel]
    return Work(
        programs=_programs(launch),
        loops=1,
        trips=-(-tokens // (of["BLOCK_M"] if kernel == "backward_keys" else of["BLOCK_N"])),
        loop_macs=scores * (_PRODUCTS[kernel] * channels + with_terms * of["R"]),
        once_macs=with_tables * of["BLOCK_M"] * of["T"] * channels,
        scores=scores,
        floor_flops=2.0 * _PRODUCTS[kernel] * launch.grid[1] * tokens**2 * of["D"],
        floor_bytes=_bytes(launch, but=_OURS),
        moved_bytes=_bytes(launch),
    )


def _mask_loss(launch: Launch) -> Work:
    of, backward = launch.arguments, launch.kernel.__name__ == "backward"
    return Work(
        programs=_programs(launch),
        loops=1,
        trips=of["ROWS"] + 2 * backward,  # of cells; one beyond each end goes backward too
        loop_macs=0,
        once_macs=0,
        scores=of["LANES"] * of["F"] ** 2,  # pixels
        floor_flops=0.0,
        floor_bytes=_bytes(launch, but=_OURS),
        moved_bytes=_bytes(launch),
    )


def _programs(launch: Launch) -> int:
    programs = 1
    for along_axis in launch.grid:
        programs *= along_axis
    return programs


def _bytes(launch: Launch, but: Sequence[str] = ()) -> float:
    names = launch.kernel.arg_names[: len(launch.tensors)]
    share = {"D_QKV": _D_QKV_SHARE.get(launch.kernel.__name__, 1.0)}
    tensors = zip(names, launch.tensors, strict=True)
    return sum(share.get(name, 1.0) * x.nbytes for name, x in tensors if name not in but)
