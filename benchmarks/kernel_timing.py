"""Time and memory of a differentiable function, on a GPU or (a few runs, for the way it works only) on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import gpus
import torch
import torch._functorch.config
from torch import Tensor

# torch.compile would free what a backward that is timed again and again still needs.
torch._functorch.config.donated_buffer = False
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Floor:
    """What cannot be avoided: floating point operations, and bytes with each tensor read or written once."""

    flops: float
    bytes: float

    def __add__(self, other: Floor) -> Floor:
        return Floor(self.flops + other.flops, self.bytes + other.bytes)

    def ms(self) -> float:
        """On the GPU at hand; NaN where its peaks are not known."""
        gpu = gpus.at_hand()
        return 1e3 * max(self.flops / gpu.flops, self.bytes / gpu.bandwidth) if gpu else float("nan")


@dataclass(frozen=True)
class Timing:
    mode: str  # forward | backward | full
    ms_20: float
    ms_50: float
    ms_80: float
    peak_mb: float  # beyond what was allocated before
    saved_mb: float  # kept from forward to backward, inputs that are read again included


def compare(
    op: str,
    shape: str,
    providers: Mapping[str, Callable[..., Tensor | Sequence[Tensor]]],
    inputs: Sequence[Tensor],
    forward: Floor,
    backward: Floor,
) -> list[dict[str, object]]:
    """Time every provider of a differentiable op, say it, and give the rows for the table of results."""
    print(f"{op}, {shape}, {DEVICE}")
    floors = {"forward": forward, "backward": backward, "full": forward + backward}
    rows: list[dict[str, object]] = []
    for provider, function in providers.items():
        try:
            timings = list(measure(function, inputs, once=DEVICE == "cpu" and "triton" in provider))
        except torch.OutOfMemoryError:
            print(f"  {provider:20} out of memory")
            continue
        except Exception as error:  # a baseline that cannot do this must not cost us the others
            if "triton" in provider:
                raise
            print(f"  {provider:20} failed: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        rows += [as_row(op, shape, provider, timing, floors[timing.mode]) for timing in timings]
        print(f"  {provider:20}", "  ".join(f"{t.mode} {t.ms_50:8.3f} ms" for t in timings), end="  ")
        print(f"peak {timings[-1].peak_mb:7.0f} MB  saved {timings[0].saved_mb:7.1f} MB", flush=True)
    return rows


def as_row(op: str, shape: str, provider: str, timing: Timing, floor: Floor) -> dict[str, object]:
    """With what was reached of the floor: TFLOP/s and GB/s are the floor's work in the time it took."""
    reached = {
        "tflops": floor.flops / timing.ms_50 / 1e9,
        "gb_s": floor.bytes / timing.ms_50 / 1e6,
        "of_floor": floor.ms() / timing.ms_50,
    }
    row = {"op": op, "shape": shape, "device": DEVICE, "provider": provider, **vars(timing), **reached}
    return {key: round(x, 4) if isinstance(x, float) else x for key, x in row.items()}


def measure(
    function: Callable[..., Tensor | Sequence[Tensor]], inputs: Sequence[Tensor], once: bool = False
) -> Iterator[Timing]:
    """Time ``function(*inputs)``, whose differentiable outputs are given gradients of ones.

    Args:
        inputs: those that require a gradient get one.
        once: on a CPU, as Triton's interpreter, of whose times nothing can be learnt: one forward and its backward.
    """
    wanted = [x for x in inputs if x.requires_grad]

    def forward() -> list[Tensor]:
        out = function(*inputs)
        return [x for x in ([out] if isinstance(out, Tensor) else out) if x.requires_grad]

    def backward(outputs: list[Tensor], keep: bool = False) -> None:
        torch.autograd.grad(outputs, wanted, ones, retain_graph=keep, allow_unused=True)

    start = time.perf_counter()
    outputs: list[Tensor] = []
    saved = saved_bytes(lambda: outputs.extend(forward()))
    first = (time.perf_counter() - start) * 1e3
    ones = [torch.ones_like(x) for x in outputs]
    if once:
        second = _milliseconds(lambda: backward(outputs))
        for mode, ms in {"forward": first, "backward": second, "full": first + second}.items():
            yield Timing(mode, ms, ms, ms, peak_mb=float("nan"), saved_mb=saved / 1e6)
        return
    modes: dict[str, Callable[[], object]] = {
        "forward": forward,
        "backward": lambda: backward(outputs, keep=True),
        "full": lambda: backward(forward()),
    }
    for mode, run in modes.items():
        yield Timing(mode, *quantiles(run), peak_mb=_peak(run) / 1e6, saved_mb=saved / 1e6)


def saved_bytes(forward: Callable[[], object]) -> int:
    """Of all storages that the graph of ``forward`` keeps, each counted once."""
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        kept = forward()
    del kept
    return sum(storages.values())


def quantiles(run: Callable[[], object]) -> tuple[float, float, float]:
    """20, 50 and 80 percentiles of its time, ms."""
    if DEVICE == "cuda":
        import triton

        low, middle, high = triton.testing.do_bench(run, warmup=20, rep=100, quantiles=[0.2, 0.5, 0.8])
        return low, middle, high
    taken = [_milliseconds(run) for _ in range(4)][1:]
    cuts = statistics.quantiles(taken, n=5, method="inclusive")
    return cuts[0], statistics.median(taken), cuts[-1]


def _milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def _peak(run: Callable[[], object]) -> float:
    if DEVICE == "cpu":
        return float("nan")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
