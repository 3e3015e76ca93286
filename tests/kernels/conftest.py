"""The kernels' numbers: on a GPU as they are, elsewhere in Triton's interpreter, with no memory left as it came."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """What ``torch.empty`` gives is NaN: an output that a kernel does not write is not mistaken for a right one."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
