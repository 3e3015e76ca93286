"""A mean of the model's weights over the steps, in which each step counts less than the next: it is evaluated and
exported in place of the last weights, which still carry the last steps' noise.

DeepSpeed knows nothing of it. A rank keeps, in fp32, the mean of those parts of the masters that it steps itself, and
where they lie: under ZeRO the mean is cut up as they are, and costs no communication before it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor

from sam_ds.engine import moments


class Ema:
    """``mean = decay * mean + (1 - decay) * weights`` after each step; weights that do not train are their own mean."""

    @torch.no_grad()
    def __init__(self, ds: DeepSpeedEngine, decay: float, means: dict[str, Tensor]) -> None:
        """Begin, or go on.

        Args:
            means: to go on from, whole, under the task's names; where there are none, from the weights of now.
        """
        self._new = 1.0 - decay
        parts = [part for part in moments.parts(ds) if part.name.startswith("model.")]
        self._masters = [moments.piece(part, part.owner) for part in parts]
        self._means = [master.detach().clone() for master in self._masters]
        if means:
            for part, mean in zip(parts, self._means, strict=True):
                mean.copy_(means[part.name].flatten()[part.start : part.start + part.numel])

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of now into the mean. The rule, to the bit, of torch.optim.swa_utils."""
        if self._means:  # under ZeRO a rank may have no part of the model
            torch._foreach_lerp_(self._means, self._masters, self._new)

    @contextmanager
    def in_place_of_masters(self) -> Iterator[None]:
        """What is gathered inside is the mean. The weights that DeepSpeed computes with are not touched."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for mean, master in zip(self._means, self._masters, strict=True):
            kept = mean.clone()
            mean.copy_(master)
            master.copy_(kept)
