"""The next click of a rollout: a point drawn uniformly from where the prediction is wrong (SAM, appendix A)."""

from __future__ import annotations

import torch
from torch import Tensor

from sam_ds.prompts.draws import uniform
from sam_ds.prompts.regions import draw_pixel, to_input
from sam_ds.types import MASKED, NEGATIVE, POSITIVE

_SALT = 1000  # above all salts of the first prompt


def correction_click(
    predicted: Tensor, truth: Tensor, inside: Tensor, keys: Tensor, round_index: int, stride: float
) -> tuple[Tensor, Tensor]:
    """One more point an object, in input pixels.

    Args:
        predicted, truth, inside: bool [O, H, W]; pixels that are not ``inside`` the picture are never clicked.
        keys: int64 [O].
        round_index: which round asks, so that each draws anew.
        stride: input pixels a cell of the grid.

    Returns:
        points float32 [O, 1, 2] and labels int64 [O, 1]: POSITIVE in a false negative, NEGATIVE in a false
        positive, MASKED where nothing is wrong.
    """
    error = (predicted ^ truth) & inside
    pixel, found = draw_pixel(error, uniform(keys, _SALT + round_index)[:, 0])
    x, y = pixel.long().unbind(-1)
    on_object = truth[torch.arange(len(truth), device=truth.device), y, x]
    label = torch.where(found, torch.where(on_object, POSITIVE, NEGATIVE), MASKED)
    return to_input(pixel, stride)[:, None], label[:, None]
