"""Pictures made of two: mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899), drawn for each picture by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from sam_ds.config.schema import ClassifyConfig
from sam_ds.prompts.draws import beta, uniform

_KIND, _SHARE, _CENTRE = 2100, 2101, 2102  # salts, apart from those of other draws


def mix(images: Tensor, keys: Tensor, config: ClassifyConfig) -> tuple[Tensor, Tensor]:
    """Mix every picture with the one before it in the batch (the first with the last).

    Where both kinds are wanted, a picture gets either with equal chance. What is drawn for a picture, the kind, the
    share and the place, is the same on any number of ranks. The other picture is not: it is the neighbour in this
    rank's micro-batch, so another number of ranks or another micro-batch mixes a picture with another.

    Args:
        images: float [B, 3, S, S].
        keys: int64 [B], of every draw.

    Returns:
        the pictures, and float32 [B]: how much of each is its own.
    """
    own = torch.ones(len(images), device=images.device)
    if not (config.mixup or config.cutmix):
        return images, own
    others = images.roll(1, 0)
    mixed = images
    if config.mixup:
        own = beta(keys, _SHARE, config.mixup)
        mixed = own[:, None, None, None] * images + (1 - own)[:, None, None, None] * others
    if config.cutmix:
        inside = _rectangles(images.shape[-1], beta(keys, _SHARE, config.cutmix), uniform(keys, _CENTRE, 2))
        cut = uniform(keys, _KIND)[:, 0] < (0.5 if config.mixup else 1.0)
        mixed = torch.where(cut[:, None, None, None], torch.where(inside[:, None], others, images), mixed)
        own = torch.where(cut, 1 - inside.float().mean((1, 2)), own)
    return mixed, own


def _rectangles(side: int, own: Tensor, centres: Tensor) -> Tensor:
    """bool [B, S, S]: squares of 1 - ``own`` [B] of the area around ``centres`` [B, 2], as far as the picture goes."""
    reach = 0.5 * side * (1 - own).sqrt()  # [B]
    places = torch.arange(side, device=own.device) + 0.5
    near = [(places - side * centres[:, axis, None]).abs() < reach[:, None] for axis in (0, 1)]  # [B, S] each
    return near[0][:, :, None] & near[1][:, None, :]
