"""How good a mask is, and the sums that a mean over all masks of all ranks is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sam_ds.config.errors import UserError
from sam_ds.config.schema import EvalConfig
from sam_ds.ops.distance_transform import distance_transform

# How far a boundary may lie from the true one, as a part of the picture's diagonal: the DAVIS benchmark's value
# (Perazzi et al. 2016; 0.008 in its public evaluation code), rounded up to whole pixels as there.
BOUNDARY_TOLERANCE = 0.008


def iou(prediction: Tensor, truth: Tensor) -> Tensor:
    """float32 [C], intersection over union of masks bool [C, H, W] and one truth bool [H, W]; 1 if both are empty."""
    shared = (prediction & truth).sum((1, 2))
    union = (prediction | truth).sum((1, 2))
    return torch.where(union > 0, shared / union.clamp(min=1), 1.0)


def boundary_f1(prediction: Tensor, truth: Tensor, size: tuple[int, int]) -> float:
    """F1 of two masks' boundaries: precision and recall of boundary pixels with a partner within the tolerance.

    Args:
        prediction, truth: bool [H, W], the same part of a picture; what lies beyond it counts as more of the same,
            so the edge of a picture is no boundary (as in DAVIS).
        size: height and width of the whole picture, of which the tolerance is a part.
    """
    tolerance = math.ceil(BOUNDARY_TOLERANCE * math.hypot(*size))
    edges = torch.stack([_boundary(prediction), _boundary(truth)])
    count = edges.sum((1, 2))
    if not count.all():
        return float(count[0] == count[1])
    near = distance_transform(~edges, border=False) <= tolerance**2
    precision = (edges[0] & near[1]).sum() / count[0]
    recall = (edges[1] & near[0]).sum() / count[1]
    return float(2 * precision * recall / (precision + recall).clamp(min=1e-12))


def _boundary(mask: Tensor) -> Tensor:
    """The mask's pixels with an unset one above, below, left or right."""
    inner = mask.clone()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return mask & ~inner


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
    rows = [name for name in next(iter(columns.values())) if name != "masks"]
    first = max(len(_label(name)) for name in rows)
    widths = [max(len(title), 6) for title in columns]
    lines = [" " * first + "".join(f"  {title:>{w}}" for title, w in zip(columns, widths, strict=True))]
    for name in sorted(rows, key=lambda name: (name.startswith("boundary"), rows.index(name))):
        values = (f"  {100 * values[name]:{w}.1f}" for values, w in zip(columns.values(), widths, strict=True))
        lines.append(f"{_label(name):<{first}}" + "".join(values))
    return "\n".join(lines)


_METRIC = {"miou": "mIoU", "boundary_f1": "boundary F1"}


def _label(name: str) -> str:
    metric, _, round_ = name.partition("@")
    round_, _, oracle = round_.partition("/")
    after = "a box" if round_ == "box" else f"{round_} click" + "s" * (round_ != "1")
    best = ", best of three" if oracle else ""
    return f"{_METRIC[metric]} after {after}{best}"
