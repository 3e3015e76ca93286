"""One mask of one picture, for a prompt in the picture's own pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam_ds.config.errors import UserError
from sam_ds.data.files import BadSampleError
from sam_ds.data.pictures import open_picture
from sam_ds.data.pixels import show
from sam_ds.data.transforms import whole_view
from sam_ds.evaluation.source import Box, source_view
from sam_ds.modeling.sam import Sam
from sam_ds.types import BOTTOM_RIGHT, MASKED, PAD, TOP_LEFT, Prompts


class Prompt(NamedTuple):
    """In pixels of the source picture; (0, 0) is the centre of its first pixel."""

    points: Sequence[tuple[float, float]] = ()
    labels: Sequence[int] = ()  # POSITIVE or NEGATIVE, one a point
    box: tuple[float, float, float, float] | None = None  # x0, y0, x1, y1

    def check(self, size: tuple[int, int]) -> None:
        """Raises UserError if it is empty or does not lie on a picture of this height and width."""
        height, width = size
        if not self.points and self.box is None:
            raise UserError("there is nothing to segment: give at least one --point x,y or a --box x0,y0,x1,y1")
        corners = [] if self.box is None else [self.box[:2], self.box[2:]]
        for kind, spots in (("point", self.points), ("box corner", corners)):
            for x, y in spots:
                if not (0 <= x < width and 0 <= y < height):
                    raise UserError(f"the {kind} {x:g},{y:g} lies outside the picture of {width} x {height} pixels")
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise UserError(f"the box {','.join(f'{v:g}' for v in self.box)} is empty: write it as x0,y0,x1,y1")


class PredictedMask(NamedTuple):
    mask: Tensor  # bool [H, W] of the source picture, host memory
    iou: float  # as the model predicts it


def read_picture(path: Path) -> NDArray[np.uint8]:
    """RGB uint8 [H, W, 3], turned as its orientation tag says: as a viewer shows it.

    Raises:
        UserError: there is no such file, or it is no picture.
    """
    try:
        return open_picture(path.read_bytes()).pixels()[0]
    except FileNotFoundError:
        raise UserError(f"there is no picture {path}") from None
    except (OSError, BadSampleError) as error:
        raise UserError(f"{path} is not a picture that can be read: {error}") from None


@torch.no_grad()
def predict(model: Sam, pixels: NDArray[np.uint8], prompt: Prompt, device: torch.device | str) -> PredictedMask:
    """The mask that a prompt means: of three for a single point, the one with the highest predicted IoU.

    Args:
        pixels: RGB uint8 [H, W, 3].

    Raises:
        UserError: the prompt is empty or lies outside the picture.
    """
    size = pixels.shape[0], pixels.shape[1]
    prompt.check(size)
    side = model.config.image_size
    view = whole_view(size, side, exact=True)
    images = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    show(pixels, view, None, images[0])
    model.eval()
    embeddings = model.encode(model.normalize(images.to(device), torch.tensor([view.valid_size], device=device)))
    picture = torch.zeros(1, dtype=torch.int64, device=device)
    multimask = len(prompt.points) == 1 and prompt.box is None
    answer = model.decode(embeddings, picture, _to_input(prompt, size, view.valid_size, model).to(device), multimask)
    best = int(answer.iou[0].argmax())
    logits = answer.masks[0, best].float().cpu()[None]  # [1, h, w]
    whole = Box(0, 0, size[1], size[0])
    mask = source_view((logits.shape[1], logits.shape[2]), side, view.valid_size, size).cut(logits, whole)[0]
    return PredictedMask(mask, float(answer.iou[0, best]))


def _to_input(prompt: Prompt, size: tuple[int, int], valid: tuple[int, int], model: Sam) -> Prompts:
    """The prompt in pixels of the model's input, with the two slots for corners last."""
    logits_side = model.config.image_size // model.logits_stride
    corners = [(0.0, 0.0), (0.0, 0.0)] if prompt.box is None else [prompt.box[:2], prompt.box[2:]]
    scale = torch.tensor([valid[1] / size[1], valid[0] / size[0]])
    points = (torch.tensor([*prompt.points, *corners]) + 0.5) * scale - 0.5
    corner_labels = [PAD, MASKED] if prompt.box is None else [TOP_LEFT, BOTTOM_RIGHT]
    return Prompts(
        points=points[None],
        labels=torch.tensor([[*prompt.labels, *corner_labels]]),
        masks=torch.zeros(1, 1, logits_side, logits_side),
        has_mask=torch.zeros(1, dtype=torch.bool),
    )
