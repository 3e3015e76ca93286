"""TensorBoard's event files, when it is installed and the recipe asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


class TensorboardTracker:
    def __init__(self, folder: Path, resumed_at: int | None) -> None:
        self._folder = folder
        self._open(resumed_at)

    def _open(self, resumed_at: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        # What was written after the checkpoint is hidden when the run goes on from it.
        self._writer = SummaryWriter(str(self._folder), purge_step=None if resumed_at is None else resumed_at + 1)
        self._step = resumed_at or 0

    def resumed(self, step: int) -> None:
        self._writer.close()
        self._open(step)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._step = step
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def artifact(self, path: Path) -> None:
        """Pictures are shown; other files stay in the run folder."""
        if path.suffix == ".png":
            with Image.open(path) as image:
                self._writer.add_image(path.stem, np.asarray(image.convert("RGB")), self._step, dataformats="HWC")

    def close(self, failed: bool = False) -> None:
        self._writer.close()
