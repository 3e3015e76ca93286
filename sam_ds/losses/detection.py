"""The loss of detected boxes: a library's Hungarian matcher and its losses of matched and unmatched boxes.

That of RT-DETR (arXiv 2304.08069) in transformers: varifocal for classes, L1 and generalised IoU for boxes, of every
layer's answer by a matching of its own. The matching runs on the host, so a step waits for the device.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from transformers import RTDetrConfig
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher, RTDetrLoss

# The library's names of the parts; those of layers before the last end in its number.
_PARTS = {"class": "loss_vfl", "box": "loss_bbox", "giou": "loss_giou"}


class _Matcher(RTDetrHungarianMatcher):
    """The library's, which fails where there is nothing to match."""

    def forward(self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Of every picture, which queries take which boxes, both int64 [M]."""
        if any(len(target["boxes"]) for target in targets):
            match: list[tuple[Tensor, Tensor]] = super().forward(outputs, targets)
            return match
        none = torch.zeros(0, dtype=torch.int64)
        return [(none, none) for _ in targets]


@cache
def _criterion(num_classes: int) -> RTDetrLoss:
    """The library's, which has no state; its weights of the parts and of the matching are its defaults, the paper's."""
    config = RTDetrConfig(num_labels=num_classes)
    criterion = RTDetrLoss(config)
    criterion.matcher = _Matcher(config)
    return criterion


def detection_loss(logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The parts of the loss, weighted, summed over the pictures' boxes and over all layers' answers.

    They are NaN where a box that was found is not finite: the library would raise, and the step is to be skipped.

    Args:
        logits: float32 [B, L, Q, C], of L layers' answers, the last one's last.
        boxes: float32 [B, L, Q, 4], centre x and y, width and height, as parts of the input's side.
        targets: of every picture ``class_labels`` int64 [O] and ``boxes`` float32 [O, 4]; O may be 0.

    Returns:
        "class", "box" and "giou", float32 scalars.
    """
    if isinstance(logits, FakeTensor):  # a plan has no values to match by, and next to the model the loss is nothing
        return {"class": logits.sum(), "box": boxes.sum(), "giou": boxes.sum()}
    finite = boxes.isfinite()
    spoiled = torch.where(finite.all(), 0.0, torch.nan)
    layers: list[dict[str, Any]] = [
        {"logits": classes, "pred_boxes": places}
        for classes, places in zip(logits.unbind(1), torch.where(finite, boxes, 0.5).unbind(1), strict=True)
    ]
    found = _criterion(logits.shape[-1])({**layers[-1], "auxiliary_outputs": layers[:-1]}, targets)
    count = max(1, sum(len(target["boxes"]) for target in targets))  # which the library has divided by
    return {
        part: count * torch.stack([value for key, value in found.items() if key.startswith(name)]).sum() + spoiled
        for part, name in _PARTS.items()
    }
