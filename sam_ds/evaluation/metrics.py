"""How good a mask is, and the sums that a mean over all masks of all ranks is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam_ds.config.errors import UserError
from sam_ds.config.schema import EvalConfig
from sam_ds.evaluation import tables
from sam_ds.ops.distance_transform import distance_transform

# How far a boundary may lie from the true one, as a part of the picture's diagonal: the DAVIS benchmark's value
# (Perazzi et al. 2016; 0.008 in its public evaluation code), rounded up to whole pixels as there.
BOUNDARY_TOLERANCE = 0.008


Mask = NDArray[np.bool_]


def iou(prediction: Mask, truth: Mask) -> float:
    """Intersection over union of two masks [H, W]; 1 if both are empty."""
    shared = np.count_nonzero(prediction & truth)
    union = np.count_nonzero(prediction) + np.count_nonzero(truth) - shared
    return shared / union if union else 1.0


def boundary_f1(prediction: Mask, truth: Mask, size: tuple[int, int]) -> float:
    """F1 of two masks' boundaries: precision and recall of boundary pixels with a partner within the tolerance.

    Args:
        prediction, truth: [H, W], the same part of a picture; what lies beyond it counts as more of the same,
            so the edge of a picture is no boundary (as in DAVIS).
        size: height and width of the whole picture, of which the tolerance is a part.
    """
    tolerance = math.ceil(BOUNDARY_TOLERANCE * math.hypot(*size))
    found, wanted = _boundary(prediction), _boundary(truth)
    num_found, num_wanted = np.count_nonzero(found), np.count_nonzero(wanted)
    if not num_found or not num_wanted:
        return float(num_found == num_wanted)
    # No pair can lie outside of the true boundary's box and its surroundings: distances are needed there only.
    window = _around(wanted, tolerance)
    edges = np.stack([found[window], wanted[window]])
    near = distance_transform(torch.from_numpy(~edges), border=False).numpy() <= tolerance**2
    precision = np.count_nonzero(edges[0] & near[1]) / num_found
    recall = np.count_nonzero(edges[1] & near[0]) / num_wanted
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: Mask) -> Mask:
    """The mask's pixels with an unset one above, below, left or right."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    boundary: Mask = mask & ~inner
    return boundary


def _around(mask: Mask, margin: int) -> tuple[slice, slice]:
    """The rows and columns of a mask that is not empty, and ``margin`` more on every side."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (
        slice(max(rows[0] - margin, 0), rows[-1] + margin + 1),
        slice(max(columns[0] - margin, 0), columns[-1] + margin + 1),
    )


@dataclass(frozen=True)
class EvalSums:
    """Sums over masks. Add those of all ranks (``to_tensor``, all-reduce, ``from_tensor``) before ``metrics``."""

    names: tuple[str, ...]  # of the metrics, the same on all ranks
    sums: Tensor  # float64 [K]
    count: float  # masks

    @classmethod
    def zero(cls, config: EvalConfig) -> EvalSums:
        """Nothing measured. "@3" is after three clicks, "@box" after a box, "oracle" the best of the three masks."""
        rounds = [str(clicks) for clicks in config.clicks] + ["box"] * config.box
        names = [f"{metric}@{round_}" for metric in ("miou", "boundary_f1") for round_ in rounds]
        if 1 in config.clicks:
            names.append("miou@1/oracle")
        return cls(tuple(names), torch.zeros(len(names), dtype=torch.float64), 0.0)

    def plus(self, values: Mapping[str, float]) -> EvalSums:
        """With one more mask, which has a value for every name."""
        added = torch.tensor([values[name] for name in self.names], dtype=torch.float64)
        return replace(self, sums=self.sums + added, count=self.count + 1)

    def to_tensor(self) -> Tensor:
        """float64 [K + 1]: the sums, then the count."""
        return torch.cat([self.sums, torch.tensor([self.count], dtype=torch.float64)])

    def from_tensor(self, tensor: Tensor) -> EvalSums:
        """These names with the sums and the count of another ``to_tensor``."""
        tensor = tensor.cpu().double()
        return replace(self, sums=tensor[:-1], count=float(tensor[-1]))

    def metrics(self) -> dict[str, float]:
        """Means over masks, and how many there were as "masks".

        Raises:
            UserError: there was no mask.
        """
        if self.count == 0:
            raise UserError("evaluation: no mask to evaluate; check the val pictures and data.min_area, data.max_area")
        means = (self.sums / self.count).tolist()
        return {**dict(zip(self.names, means, strict=True)), "masks": self.count}


def table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics of several predictors side by side, one line a metric, in percent.

    Args:
        columns: a title ("before", "disc", "after") and what ``EvalSums.metrics`` gave.
    """
    names = [name for name in next(iter(columns.values())) if name != "masks"]
    names.sort(key=lambda name: name.startswith("boundary"))  # of one metric in their order
    rows = {_label(name): [f"{100 * values[name]:.1f}" for values in columns.values()] for name in names}
    return tables.table(list(columns), rows)


_METRIC = {"miou": "mIoU", "boundary_f1": "boundary F1"}


def _label(name: str) -> str:
    metric, _, round_ = name.partition("@")
    round_, _, oracle = round_.partition("/")
    after = "a box" if round_ == "box" else f"{round_} click" + "s" * (round_ != "1")
    best = ", best of three" if oracle else ""
    return f"{_METRIC[metric]} after {after}{best}"
