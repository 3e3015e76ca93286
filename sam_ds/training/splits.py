"""What the kits of all tasks have in common: a part of the data to train on and one to evaluate on."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.config.schema import Recipe
from sam_ds.data.sampler import Share
from sam_ds.engine import distributed


class _Set(Protocol):
    def fingerprint(self) -> str:
        """Equal for the same samples in the same order."""
        ...


SetT = TypeVar("SetT", bound=_Set)


class SplitsKit(Generic[SetT]):
    """Holds the two parts once ``open_data`` has found them."""

    def __init__(self) -> None:
        self._splits: tuple[SetT, SetT] | None = None
        self.classes: list[str] = []

    @property
    def splits(self) -> tuple[SetT, SetT]:
        """To train on, and to evaluate on."""
        assert self._splits is not None, "open_data comes first"
        return self._splits

    def fingerprint(self) -> str:
        return "-".join(split.fingerprint() for split in self.splits)

    def rounds(self, recipe: Recipe, step: int) -> int:
        """One, where there are no rounds."""
        return 1


def own_share(config: DeepSpeedConfig) -> Share:
    """What this rank takes of every global batch."""
    return Share(config.micro_batch, config.accumulation, distributed.rank(), distributed.world_size())
