from __future__ import annotations

import pytest

from sam_ds.cli.plan import make_tracer
from sam_ds.planning.plan import Tracer


@pytest.fixture(scope="session")
def tracer() -> Tracer:
    """Of plans for CPUs; what it has traced once it knows."""
    return make_tracer(on_gpu=False)


@pytest.fixture(scope="session")
def gpu_tracer() -> Tracer:
    """Of plans for GPUs."""
    return make_tracer(on_gpu=True)
