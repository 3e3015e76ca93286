"""Pictures that are but a part of a model's input."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sam_ds.config.errors import UserError


class _Sizes(Protocol):
    """Of a SAM or a plain ViT, in pixels."""

    @property
    def image_size(self) -> int: ...
    @property
    def patch_size(self) -> int: ...


def check_crop(side: int, sizes: _Sizes) -> None:
    """Raise UserError unless the model can take pictures of ``side`` pixels; 0 stands for whole ones."""
    if side > sizes.image_size or side % sizes.patch_size:
        raise UserError(
            f"data.crop_size={side}: must be a multiple of the model's patches ({sizes.patch_size} pixels) "
            f"and at most its input ({sizes.image_size} pixels)"
        )


def crop_grid(grid: Tensor, origin: Tensor | None, side: int) -> Tensor:
    """The square of ``side`` cells at ``origin`` (x, y; None: the first cell) of [1, g, g, D]. No host sync."""
    if origin is None:
        return grid[:, :side, :side]
    cells = torch.arange(side, device=grid.device)
    return grid.index_select(1, origin[1] + cells).index_select(2, origin[0] + cells)
