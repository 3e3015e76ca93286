"""The values that travel between the floors: batches, prompts, predictions.

Letters in shape comments: B pictures, O objects (masks of all pictures of a batch, flattened), S the side of
the model's square input in pixels, P prompt slots, C masks an object is given, h and w the logits' grid.

Coordinates are (x, y) in pixels of the model's input, with the centre of the first pixel at (0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

# What a prompt slot holds. 0 to 3 and PAD are the released SAM's own codes. MASKED marks a slot that is not
# there at all: no token attends to it, so every rank can carry the same number of slots (one graph for all).
MASKED, PAD, NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT = -2, -1, 0, 1, 2, 3

UNLABELLED = 255  # of a pixel that is neither trained nor measured on

_T = TypeVar("_T", bound="_Tensors")


@dataclass(frozen=True)
class _Tensors:
    """A dataclass of tensors (and of such dataclasses) that moves between devices as one."""

    def to(self: _T, device: torch.device | str, non_blocking: bool = False) -> _T:
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)}
        return type(self)(**moved)

    def pin_memory(self: _T) -> _T:
        return type(self)(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})


@dataclass(frozen=True)
class MaskRuns(_Tensors):
    """Masks as run lengths in COCO's order (down the columns, background first), never as rasters.

    Pixel (x, y) of mask o has the index i = x * height + y, and is set if an odd number of the mask's
    ``ends`` are <= i. The last end of every mask is height * width.
    """

    ends: Tensor  # int32 [R]      cumulative run ends, mask after mask
    offsets: Tensor  # int64 [O+1]    mask o owns ends[offsets[o]:offsets[o+1]]
    sizes: Tensor  # int32 [O, 2]   height and width of the picture the runs were cut in

    def __len__(self) -> int:
        return self.offsets.numel() - 1


@dataclass(frozen=True)
class SegmentBatch(_Tensors):
    """Pictures with masks, as the loader hands them over (host memory, nothing normalised or rasterised)."""

    images: Tensor  # uint8 [B, 3, S, S]  RGB; what lies outside valid_sizes is zero
    valid_sizes: Tensor  # int32 [B, 2]      height and width of the top-left part that shows picture
    to_source: Tensor  # float32 [B, 2, 3] from input to source pixels: (x', y') = M @ (x + .5, y + .5, 1),
    #                                        the source pixel is floor(x'), floor(y'); outside it, no mask
    runs: MaskRuns  # O masks
    picture: Tensor  # int64 [O]         which picture of the batch the mask belongs to, ascending
    mask_ids: Tensor  # int64 [O]         the mask's place in its picture's JSON
    sample_ids: Tensor  # int64 [B]         the picture's place in the index
    positions: Tensor  # int64 [B]         the picture's place in the endless global stream of samples

    def __len__(self) -> int:
        return self.images.shape[0]


@dataclass(frozen=True)
class PictureBatch(_Tensors):
    """Whole pictures, each with at most a class, as the loader hands them over (host memory, nothing normalised)."""

    images: Tensor  # uint8 [B, 3, S, S]  RGB
    labels: Tensor  # int64 [B]         class; -1: none
    sample_ids: Tensor  # int64 [B]         the picture's place in the index; -1: a black one that fills a batch up
    positions: Tensor  # int64 [B]         the picture's place in the endless global stream of samples

    def __len__(self) -> int:
        return self.images.shape[0]


@dataclass(frozen=True)
class BoxBatch(_Tensors):
    """Pictures with boxes, as the loader hands them over (host memory, nothing normalised)."""

    images: Tensor  # uint8 [B, 3, S, S]  RGB; what lies outside valid_sizes is zero
    valid_sizes: Tensor  # int32 [B, 2]      height and width of the top-left part that shows picture
    to_source: Tensor  # float32 [B, 2, 3] from the input's continuous coordinates to the source's
    boxes: Tensor  # float32 [O, 4]    left, top, right, bottom in the input's pixels, (0, 0) its corner
    labels: Tensor  # int64 [O]         classes
    counts: Tensor  # int64 [B]         boxes of each picture, one after another; always in host memory
    sample_ids: Tensor  # int64 [B]         the picture's place in its set; -1: a black one that fills a batch up
    positions: Tensor  # int64 [B]         the picture's place in the endless global stream of samples

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> BoxBatch:
        """All but the counts: boxes are matched picture by picture, on the host."""
        return replace(super().to(device, non_blocking), counts=self.counts)


@dataclass(frozen=True)
class LabelBatch(_Tensors):
    """Pictures with a class for every pixel, as the loader hands them over (host memory, nothing normalised)."""

    images: Tensor  # uint8 [B, 3, S, S]  RGB; what lies outside valid_sizes is zero
    valid_sizes: Tensor  # int32 [B, 2]      height and width of the top-left part that shows picture
    labels: Tensor  # uint8 [B, S, S]   classes, or UNLABELLED
    sample_ids: Tensor  # int64 [B]         the picture's place in its set; -1: a black one that fills a batch up
    positions: Tensor  # int64 [B]         the picture's place in the endless global stream of samples

    def __len__(self) -> int:
        return self.images.shape[0]


@dataclass(frozen=True)
class Prompts(_Tensors):
    """One prompt an object; slots that are not used are MASKED, and a mask that is not there is not looked at."""

    points: Tensor  # float32 [O, P, 2]
    labels: Tensor  # int64 [O, P]     MASKED … BOTTOM_RIGHT
    masks: Tensor  # float [O, 1, h, w]  logits
    has_mask: Tensor  # bool [O]


@dataclass(frozen=True)
class Prediction(_Tensors):
    """What the mask decoder answers, the single mask (C = 1) or the three of an ambiguous prompt (C = 3)."""

    masks: Tensor  # float [O, C, h, w]  logits
    iou: Tensor  # float [O, C]        predicted IoU
