"""The interactive rounds on one batch (SAM, appendix A: "Interactive training").

Round 0 answers the first prompt. Each later round adds a point from the error region of the best mask so far and
feeds that mask's logits back; the extra rounds add no point, so the model learns to refine its own mask.
All rounds run for all objects of all pictures at once, and the number of rounds, the shapes and the branches are the
same in every step on every rank.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sam_ds.config.schema import PromptConfig
from sam_ds.ops.mask_loss import upsample
from sam_ds.prompts.correction import correction_click
from sam_ds.prompts.first import first_prompt
from sam_ds.types import MASKED, PAD, TOP_LEFT, Prediction, Prompts


class Decoder(Protocol):
    def __call__(self, embeddings: Tensor, picture: Tensor, prompts: Prompts, multimask: bool | None) -> Prediction: ...


class Round(NamedTuple):
    prediction: Prediction  # C = 4: the single mask, then the three | C = 1: the single mask
    allowed: Tensor  # bool [O, C]: which masks the prompt asks for


def clickless_round(seed: int, step: int, config: PromptConfig) -> int:
    """The round of this step, of those after the first, that adds no point. The other extra rounds come last.

    Drawn from (seed, step) alone: all ranks and all objects share it.
    """
    if config.extra_rounds == 0:
        return config.rounds
    return random.Random(f"{seed} {step}").randint(1, config.correction_rounds + 1)


def rollout(
    decode: Decoder,
    embeddings: Tensor,
    picture: Tensor,
    truth: Tensor,
    inside: Tensor,
    keys: Tensor,
    clickless: Tensor,
    config: PromptConfig,
    input_size: int,
    stride: int,
    grid: tuple[int, int],
) -> Iterator[Round]:
    """Yield the rounds one after another.

    Args:
        embeddings: [B, D, g, g] of the pictures.
        picture: int64 [O].
        truth, inside: bool [O, H, W] on the loss's grid.
        keys: int64 [O].
        clickless: int64 scalar of ``clickless_round``; a tensor, so that the graph does not depend on it.
        input_size, stride: as in ``first_prompt``; grid: (h, w) of the logits.
    """
    prompts, ambiguous = first_prompt(truth, keys, config, input_size, stride, grid)
    # The first round gives the three masks, and the single one too where some object may start with many points, or
    # where no later round trains it.
    first_masks = None if len(config.num_points) > 1 or config.rounds == 1 else True
    for index in range(config.rounds):
        prediction = decode(embeddings, picture, prompts, first_masks if index == 0 else False)
        allowed = _allowed(prediction, ambiguous)
        yield Round(prediction, allowed)
        if index + 1 == config.rounds:
            return
        logits = best_mask(prediction, allowed)  # [O, 1, h, w]
        with torch.no_grad():
            predicted = upsample(logits, truth.shape[-2:])[:, 0] > 0  # [O, H, W]
            points, labels = correction_click(predicted, truth, inside, keys, index, stride)
            adds_point = (clickless != index + 1) & (index < config.rounds - config.extra_rounds)
            labels = torch.where(adds_point, labels, MASKED)
        prompts = _add_point(prompts, points, labels, logits)


def _allowed(prediction: Prediction, ambiguous: Tensor) -> Tensor:
    """bool [O, C]. Of four masks an ambiguous prompt may have the last three, any other only the first."""
    count = prediction.iou.shape[1]
    if count < 4:
        return torch.ones_like(prediction.iou, dtype=torch.bool)
    return (torch.arange(count, device=ambiguous.device) > 0) == ambiguous[:, None]


def best_mask(prediction: Prediction, allowed: Tensor) -> Tensor:
    """Logits [O, 1, h, w] of the allowed mask with the highest predicted IoU. Not detached (as in SAM 2's trainer)."""
    if prediction.iou.shape[1] == 1:
        return prediction.masks
    best = prediction.iou.masked_fill(~allowed, -torch.inf).argmax(1)  # [O]
    return prediction.masks[torch.arange(len(best), device=best.device), best][:, None]


def _add_point(prompts: Prompts, points: Tensor, labels: Tensor, logits: Tensor) -> Prompts:
    """The prompts with one more slot in front, and ``logits`` as their mask.

    An object that started with a mask or with nothing gets, with its first point, the padding point that SAM
    gives every prompt without a box.
    """
    first_corner = prompts.labels[:, -2]
    pad = torch.where((labels[:, 0] != MASKED) & (first_corner != TOP_LEFT), PAD, first_corner)
    old = torch.cat([prompts.labels[:, :-2], pad[:, None], prompts.labels[:, -1:]], 1)
    return replace(
        prompts,
        points=torch.cat([points, prompts.points], 1),
        labels=torch.cat([labels, old], 1),
        masks=logits,
        has_mask=torch.ones_like(prompts.has_mask),
    )
