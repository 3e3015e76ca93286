"""Batches made from dense masks, and predictors whose score is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from sam_ds.types import MaskRuns, Prediction, Prompts, SegmentBatch


def runs_of(masks: list[np.ndarray]) -> MaskRuns:
    ends, sizes = [], []
    for mask in masks:
        flat = mask.T.reshape(-1).astype(np.int8)  # down the columns
        changes = np.flatnonzero(np.diff(flat, prepend=0))
        ends.append(np.append(changes, flat.size))
        sizes.append(mask.shape)
    offsets = np.cumsum([0, *(len(e) for e in ends)])
    joined = np.concatenate(ends) if ends else np.zeros(0)
    return MaskRuns(
        torch.tensor(joined, dtype=torch.int32),
        torch.tensor(offsets),
        torch.tensor(sizes, dtype=torch.int32).view(-1, 2),
    )


def batch_of(pictures: list[list[np.ndarray]], side: int = 64, empty_size: tuple[int, int] = (10, 10)) -> SegmentBatch:
    """One picture for each list of its masks, resized (longest side to ``side``) and padded."""
    valid, to_source = [], []
    for masks in pictures:
        height, width = masks[0].shape if masks else empty_size
        scale = side / max(height, width)
        shown = (max(1, round(height * scale)), max(1, round(width * scale)))
        valid.append(shown)
        to_source.append([[width / shown[1], 0.0, 0.0], [0.0, height / shown[0], 0.0]])
    count = len(pictures)
    picture = [b for b, masks in enumerate(pictures) for _ in masks]
    return SegmentBatch(
        images=torch.zeros(count, 3, side, side, dtype=torch.uint8),
        valid_sizes=torch.tensor(valid, dtype=torch.int32),
        to_source=torch.tensor(to_source),
        runs=runs_of([mask for masks in pictures for mask in masks]),
        picture=torch.tensor(picture, dtype=torch.int64),
        mask_ids=torch.arange(len(picture)),
        sample_ids=torch.arange(count),
        positions=torch.arange(count),
    )


class Oracle:
    """Knows the truth of every object at the input's size and answers with it, in the order it is asked."""

    def __init__(self, truth: Tensor, wrong: bool = False) -> None:
        self.truth = truth  # bool [O, S, S]
        self.wrong = wrong  # the candidate with the highest predicted IoU is empty, another one is right
        self.calls: list[tuple[Prompts, bool]] = []

    def normalize(self, images: Tensor, valid_sizes: Tensor) -> Tensor:
        return images.float()

    def encode(self, images: Tensor) -> Tensor:
        side = self.truth.shape[-1] // 4  # logits are then as fine as the input
        return torch.zeros(len(images), 1, side, side)

    def decode(self, embeddings: Tensor, picture: Tensor, prompts: Prompts, multimask: bool) -> Prediction:
        self.calls.append((prompts, multimask))
        right = self.truth[: len(picture), None].float() * 2 - 1  # [O, 1, S, S]
        if not multimask:
            return Prediction(right, torch.ones(len(picture), 1))
        empty = -torch.ones_like(right)
        masks = torch.cat([empty, right, empty], 1)
        scores = [0.9, 0.5, 0.1] if self.wrong else [0.1, 0.9, 0.5]
        return Prediction(masks, torch.tensor(scores).expand(len(picture), 3))


@pytest.fixture
def make_batch() -> Callable[..., SegmentBatch]:
    return batch_of


@pytest.fixture
def make_runs() -> Callable[..., MaskRuns]:
    return runs_of


@pytest.fixture
def make_oracle() -> type[Oracle]:
    return Oracle


def disc_mask(height: int, width: int, x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


@pytest.fixture
def make_disc() -> Callable[..., np.ndarray]:
    return disc_mask
