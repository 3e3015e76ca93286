"""The first prompt of every object: points, a box, a mask, or none.

All four are always computed and the drawn kind is chosen by ``torch.where``: ranks that draw different kinds
still run the same graph (ZeRO would otherwise hang or apply stale gradients).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from sam_ds.config.schema import PromptConfig
from sam_ds.prompts.draws import normal, uniform
from sam_ds.prompts.regions import draw_pixel, tight_box, to_input
from sam_ds.types import BOTTOM_RIGHT, MASKED, PAD, POSITIVE, TOP_LEFT, Prompts

_KIND, _COUNT, _BOX, _SHIFT, _POINT = range(5)  # salts; the points' salts go on from _POINT
MASK_LOGIT = 8.0  # how sure a mask prompt made from the truth is: sigmoid(8) = 0.9997


class FirstPrompt(NamedTuple):
    prompts: Prompts
    ambiguous: Tensor  # bool [O]: one prompt only, so three masks are asked for


def first_prompt(
    truth: Tensor, keys: Tensor, config: PromptConfig, input_size: int, stride: int, grid: tuple[int, int]
) -> FirstPrompt:
    """Draw the first prompt of every object.

    Args:
        truth: bool [O, H, W] on the loss's grid.
        keys: int64 [O] of ``object_keys``.
        input_size: side of the model's whole input in pixels, which bounds the noise of boxes.
        stride: pixels of the input along the side of a pixel of the loss's grid.
        grid: (h, w) of mask prompts.
    """
    kind = _interval(uniform(keys, _KIND)[:, 0], (config.point, config.box, config.mask))  # [O], 3: none
    points, labels, count = _points(truth, keys, config, stride)
    box = to_input(tight_box(truth), stride)
    limit = config.box_noise_max * input_size / 1024
    box = box + _box_noise(box, keys, config, limit)

    is_point, is_box = kind == 0, kind == 1
    labels = torch.where(is_point[:, None], labels, MASKED)
    # SAM adds one padding point where there is no box. A mask-only or empty prompt has no points, so none at all.
    first_corner = torch.where(is_box, TOP_LEFT, torch.where(is_point, PAD, MASKED))
    corners = torch.stack([first_corner, torch.where(is_box, BOTTOM_RIGHT, MASKED)], 1)  # [O, 2]
    prompts = Prompts(
        points=torch.cat([points, box.view(-1, 2, 2)], 1),
        labels=torch.cat([labels, corners], 1),
        masks=_mask_prompt(truth, keys, config, grid, limit / stride),
        has_mask=kind == 2,
    )
    return FirstPrompt(prompts, (kind != 0) | (count == 1))


def _points(truth: Tensor, keys: Tensor, config: PromptConfig, stride: float) -> tuple[Tensor, Tensor, Tensor]:
    """Points on the mask [O, n, 2], their labels [O, n], and how many each object has [O]."""
    count = 1 + _interval(uniform(keys, _COUNT)[:, 0], config.num_points[:-1])  # [O]
    drawn = [draw_pixel(truth, uniform(keys, _POINT + i)[:, 0])[0] for i in range(len(config.num_points))]
    used = torch.arange(len(drawn), device=truth.device) < count[:, None]  # [O, n]
    return to_input(torch.stack(drawn, 1), stride), torch.where(used, POSITIVE, MASKED), count


def _interval(u: Tensor, chances: Sequence[float]) -> Tensor:
    """int64 [O]: in which of the intervals of these lengths, one after another from 0 on, each number of [0, 1) lies.

    The edges stay numbers: a tensor of them would be copied to the device, and wait for it.
    """
    return sum((u >= edge).long() for edge in accumulate(chances)) + torch.zeros_like(u, dtype=torch.int64)


def _box_noise(box: Tensor, keys: Tensor, config: PromptConfig, limit: float) -> Tensor:
    """float32 [O, 4]: every coordinate of a corner moves on its own (SAM, appendix A)."""
    side = (box[:, 2:] - box[:, :2]).repeat(1, 2)  # [O, 4]: w h w h
    return (normal(keys, _BOX, 4) * config.box_noise * side).clamp(-limit, limit)


def _mask_prompt(truth: Tensor, keys: Tensor, config: PromptConfig, grid: tuple[int, int], limit: float) -> Tensor:
    """float32 [O, 1, h, w]: logits of the truth on the prompt's grid, moved as far as a box's corner may be.

    A mask prompt equal to the truth would teach the model to copy it.
    """
    height, width = truth.shape[-2:]
    box = tight_box(truth)
    side = box[:, 2:] - box[:, :2]  # [O, 2]: w h
    move = (normal(keys, _SHIFT, 2) * config.box_noise * side).clamp(-limit, limit).round().long()  # [O, 2]: x y
    rows = (torch.arange(grid[0], device=truth.device) * height // grid[0] + height // (2 * grid[0])) - move[:, 1:]
    columns = (torch.arange(grid[1], device=truth.device) * width // grid[1] + width // (2 * grid[1])) - move[:, :1]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    index = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]  # [O, h, w]
    moved = torch.gather(truth.flatten(1), 1, index.flatten(1)).view_as(index) & inside
    return (moved.float() * 2 - 1)[:, None] * MASK_LOGIT
