"""Masks drawn by the kernel are to the bit those of the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from sam_ds.ops import rasterize
from sam_ds.types import MaskRuns
from sam_ds_kernels import rasterize_runs


def random_runs(sizes: list[tuple[int, int]], seed: int) -> MaskRuns:
    """Masks of the given heights and widths with runs of random lengths, the last one a single run."""
    rng = np.random.default_rng(seed)
    ends = []
    for height, width in sizes[:-1]:
        cuts = np.unique(rng.integers(0, height * width, rng.integers(1, 40)))
        ends.append(np.append(cuts, height * width))
    ends.append(np.array([sizes[-1][0] * sizes[-1][1]]))
    offsets = np.cumsum([0, *map(len, ends)])
    return MaskRuns(
        torch.from_numpy(np.concatenate(ends)).int(), torch.from_numpy(offsets), torch.tensor(sizes, dtype=torch.int32)
    )


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_the_reference(seed: int, device: str) -> None:
    runs = random_runs([(30, 41), (7, 100), (64, 64), (1, 1), (12, 5)], seed)
    torch.manual_seed(seed)
    matrices = torch.randn(5, 2, 3) * torch.tensor([0.3, 0.3, 5.0])  # turned, sheared, and partly outside
    matrices[:, 0, 0] += runs.sizes[:, 1] / 47
    matrices[:, 1, 1] += runs.sizes[:, 0] / 33
    expected = rasterize(runs, matrices, (33, 47), "reference")
    drawn = rasterize_runs(*(x.to(device) for x in (runs.ends, runs.offsets, runs.sizes, matrices)), 33, 47)
    assert torch.equal(drawn.cpu(), expected)
    assert expected.any() and not expected.all()


def test_no_masks(device: str) -> None:
    empty = torch.zeros(0, dtype=torch.int32, device=device)
    offsets = torch.zeros(1, dtype=torch.int64, device=device)
    drawn = rasterize_runs(empty, offsets, empty.view(0, 2), torch.zeros(0, 2, 3, device=device), 4, 6)
    assert drawn.shape == (0, 4, 6)


def test_bad_input_is_named(device: str) -> None:
    runs = random_runs([(8, 8), (4, 4)], 0)
    ends, offsets, sizes = (x.to(device) for x in (runs.ends, runs.offsets, runs.sizes))
    matrices = torch.eye(2, 3, device=device).repeat(2, 1, 1)
    for wrong, message in [
        ((ends.float(), offsets, sizes, matrices), "not .* torch.float32"),
        ((ends, offsets.int(), sizes, matrices), "offsets must be .*int64"),
        ((ends, offsets, sizes[:1], matrices), r"offsets must be \[2\]"),
        ((ends, offsets, sizes, matrices[:1]), "to_source must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            rasterize_runs(*wrong, 8, 8)
