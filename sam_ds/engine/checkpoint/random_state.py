"""All global random state of a process. Training draws nothing from it that a step does not seed; users' code may."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch


def path_of(folder: Path, rank: int) -> Path:
    return folder / f"random_{rank:05d}.pt"


def read() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return {
        "python": (version, list(internal), gauss_next),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def write(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path)


def restore(path: Path) -> None:
    """A rank that the world that wrote them did not have keeps its own."""
    if not path.is_file():
        return
    state = torch.load(path, weights_only=True)
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
