"""What a model must beat: masks made from the prompt alone, without a look at the picture."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from sam_ds.config.errors import UserError
from sam_ds.evaluation.source import mask_areas
from sam_ds.types import BOTTOM_RIGHT, NEGATIVE, POSITIVE, TOP_LEFT, Prediction, Prompts, SegmentBatch

AREA_PICTURES = 200  # training pictures that the disc's mean area is measured on
_FAR = 1e6  # pixels: far beyond any picture


def mean_area_fraction(batches: Iterable[SegmentBatch]) -> float:
    """The mean of mask area by picture area, over all masks of (training) batches.

    Raises:
        UserError: there is no mask in them.
    """
    total, count = 0.0, 0
    for batch in batches:
        pixels = batch.runs.sizes.double().prod(1)  # [O]
        total += float((mask_areas(batch.runs) / pixels).sum())
        count += len(batch.runs)
    if count == 0:
        raise UserError("disc baseline: the training pictures have no mask to take a mean area from")
    return total / count


class DiscBaseline:
    """A disc of the mean mask area at the click; an ellipse that fills the box. Has a Sam's methods.

    With more clicks, one of two rules. The plain one adds such a disc at every positive click and removes one at every
    negative click, in the clicks' order. The ``nearest`` one adds a disc at every positive click and takes away what
    is nearer to a negative click than to a positive one: much the stronger of the two.
    """

    def __init__(self, area_fraction: float, nearest: bool = False) -> None:
        """``area_fraction``: of the disc, as a part of the picture's area; ``nearest``: the rule for more clicks."""
        self.area_fraction = area_fraction
        self.nearest = nearest

    def normalize(self, images: Tensor, valid_sizes: Tensor) -> Tensor:
        """float32 [B, 1, S, S]: what shows picture, all this baseline knows of one."""
        pixel = torch.arange(images.shape[-1], device=images.device)
        rows = pixel < valid_sizes[:, :1]  # [B, S]
        columns = pixel < valid_sizes[:, 1:]
        return (rows[:, :, None] & columns[:, None, :])[:, None].float()

    def encode(self, images: Tensor) -> Tensor:
        """float32 [B, 2, g, g]: the disc's radius and the side of a cell of the logits, in input pixels."""
        side = images.shape[-1]
        cells = math.ceil(side / 16)
        radius = (self.area_fraction * images.sum((1, 2, 3)) / math.pi).sqrt()  # [B]
        cell = torch.full_like(radius, side / (4 * cells))
        return torch.stack([radius, cell], 1)[:, :, None, None].expand(-1, -1, cells, cells)

    def decode(self, embeddings: Tensor, picture: Tensor, prompts: Prompts, multimask: bool) -> Prediction:
        """The same mask for every candidate. Logits are signed distances in pixels, so they resize without steps."""
        side = 4 * embeddings.shape[-1]
        radius, cell = embeddings[picture, :, 0, 0].unbind(1)  # [O]
        centre = (torch.arange(side, device=picture.device) + 0.5) * cell[:, None] - 0.5  # [O, side]
        x = centre[:, None, None, :] - prompts.points[:, :, 0, None, None]  # [O, P, 1, side]
        y = centre[:, None, :, None] - prompts.points[:, :, 1, None, None]  # [O, P, side, 1]
        distance = (x * x + y * y).sqrt()  # [O, P, side, side]
        combine = _nearest_click if self.nearest else _discs
        logits = combine(distance, prompts.labels, radius[:, None, None])
        has_box = (prompts.labels[:, -2:] == torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=picture.device)).all(1)
        logits = torch.where(has_box[:, None, None], _ellipse(prompts.points[:, -2:], centre), logits)
        masks = logits[:, None].expand(-1, 3 if multimask else 1, -1, -1)
        return Prediction(masks, torch.ones(masks.shape[:2], device=masks.device))


def _discs(distance: Tensor, labels: Tensor, radius: Tensor) -> Tensor:
    """[O, side, side] from distances [O, P, side, side]: a disc added or removed a click, one after another."""
    logits = torch.full_like(distance[:, 0], -_FAR)
    for index in range(labels.shape[1]):
        label, disc = labels[:, index, None, None], radius - distance[:, index]
        logits = torch.where(label == POSITIVE, torch.maximum(logits, disc), logits)
        logits = torch.where(label == NEGATIVE, torch.minimum(logits, -disc), logits)
    return logits


def _nearest_click(distance: Tensor, labels: Tensor, radius: Tensor) -> Tensor:
    """[O, side, side]: near enough to a positive click, and nearer to it than to any negative one."""
    positive, negative = (
        torch.where((labels == sign)[:, :, None, None], distance, _FAR).amin(1) for sign in (POSITIVE, NEGATIVE)
    )
    return torch.minimum(radius - positive, negative - positive)


def _ellipse(corners: Tensor, centre: Tensor) -> Tensor:
    """Positive in the ellipse between two corners [O, 2, 2], whose pixels belong to the box; about a distance."""
    middle = corners.mean(1)  # [O, 2]
    half = (corners[:, 1] - corners[:, 0] + 1).clamp(min=1) / 2
    x = (centre - middle[:, :1]) / half[:, :1]  # [O, side]
    y = (centre - middle[:, 1:]) / half[:, 1:]
    return (1 - (x[:, None, :] ** 2 + y[:, :, None] ** 2).sqrt()) * half.amin(1)[:, None, None]
