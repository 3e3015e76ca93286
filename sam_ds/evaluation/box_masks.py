"""SAM's masks of boxes, in COCO's format: what it makes of true boxes, or of those that a detector found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as rle
from torch import Tensor

from sam_ds.config.errors import UserError
from sam_ds.data.coco import CocoSet
from sam_ds.evaluation.interactive import OBJECTS_AT_ONCE
from sam_ds.evaluation.source import SourceView, source_view
from sam_ds.modeling.sam import Sam
from sam_ds.types import BOTTOM_RIGHT, TOP_LEFT, BoxBatch, Prompts


class Marks(NamedTuple):
    """Boxes of one picture, in its own pixels."""

    boxes: npt.NDArray[np.float64]  # [N, 4]  left, top, width, height
    categories: npt.NDArray[np.int64]  # [N]     their numbers in the JSON
    scores: npt.NDArray[np.float64] | None  # [N]     of a detector; None: the masks' predicted IoU is taken


def true_marks(pictures: CocoSet) -> Callable[[int], Marks]:
    """The set's own boxes, without those of crowds."""

    def marks(sample: int) -> Marks:
        boxes, labels = pictures.boxes_of(sample)
        return Marks(boxes, np.array(pictures.categories)[labels], None)

    return marks


def found_marks(path: Path, pictures: CocoSet) -> Callable[[int], Marks]:
    """Boxes of a file in COCO's format of results, as ``boxes.json`` of a detection's evaluation.

    Raises:
        UserError: it cannot be read, or is of another format.
    """
    try:
        rows = np.array(
            [[row["image_id"], row["category_id"], row["score"], *row["bbox"]] for row in json.loads(path.read_bytes())]
        ).reshape(-1, 7)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} holds no boxes in COCO's format of results: {type(error).__name__} {error}") from error

    def marks(sample: int) -> Marks:
        own = rows[rows[:, 0] == pictures.picture_ids[sample]]
        return Marks(own[:, 3:], own[:, 1].astype(np.int64), own[:, 2])

    return marks


@torch.no_grad()
def masks_of_boxes(
    model: Sam, batches: Iterable[BoxBatch], pictures: CocoSet, marks_of: Callable[[int], Marks], device: torch.device
) -> tuple[list[int], list[dict[str, Any]]]:
    """The samples that were looked at, and a mask for each of their boxes in COCO's format of results."""
    samples, results = [], []
    for batch in batches:
        embeddings = model.encode(model.normalize(batch.images.to(device), batch.valid_sizes.to(device)))
        for picture, sample in enumerate(batch.sample_ids.tolist()):
            if sample < 0:
                continue
            samples.append(sample)
            height, width = pictures.sizes[sample].tolist()
            valid: tuple[int, int] = tuple(batch.valid_sizes[picture].tolist())
            grid = model.config.image_size // model.logits_stride
            view = source_view((grid, grid), model.config.image_size, valid, (height, width))
            marks = marks_of(sample)
            boxes = _to_input(marks.boxes, batch.to_source[picture])
            for first in range(0, len(boxes), OBJECTS_AT_ONCE):
                some = slice(first, first + OBJECTS_AT_ONCE)
                logits, iou = _ask(model, embeddings[picture : picture + 1], boxes[some].to(device))
                scores = iou if marks.scores is None else marks.scores[some].tolist()
                results += [
                    {
                        "image_id": int(pictures.picture_ids[sample]),
                        "category_id": int(category),
                        "segmentation": _encoded(mask, view, (height, width)),
                        "score": float(score),
                    }
                    for mask, score, category in zip(logits, scores, marks.categories[some], strict=True)
                ]
    return samples, results


def _to_input(boxes: npt.NDArray[np.float64], to_source: Tensor) -> Tensor:
    """float32 [N, 4]: left, top, right and bottom, the middles of the outermost pixels of the input that a box has.

    Boxes of COCO end where pixels end; SAM is trained with boxes whose corners are pixels.
    """
    scale, shift = to_source.double().diagonal(), to_source.double()[:, 2]
    low = (torch.from_numpy(boxes[:, :2]) - shift) / scale
    high = low + torch.from_numpy(boxes[:, 2:]) / scale - 1.0
    return torch.cat([low, high.maximum(low)], dim=1).float()


def _ask(model: Sam, embedding: Tensor, boxes: Tensor) -> tuple[Tensor, list[float]]:
    """The single mask's logits [N, 1, h, w], on the host, and its predicted IoU, of every box of a picture."""
    count, side = len(boxes), model.config.image_size // model.logits_stride
    prompts = Prompts(
        points=boxes.view(count, 2, 2),
        labels=torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=boxes.device).expand(count, 2),
        masks=torch.zeros(count, 1, side, side, device=boxes.device),
        has_mask=torch.zeros(count, dtype=torch.bool, device=boxes.device),
    )
    picture = torch.zeros(count, dtype=torch.int64, device=boxes.device)
    answer = model.decode(embedding, picture, prompts, False)
    return answer.masks.float().cpu(), answer.iou[:, 0].tolist()


def _encoded(logits: Tensor, view: SourceView, size: tuple[int, int]) -> dict[str, Any]:
    """Logits [1, h, w] as a run-length code of a picture of this height and width."""
    mask = np.zeros(size, np.uint8, order="F")
    box = view.box(logits)
    if box is not None:
        mask[box.y0 : box.y1, box.x0 : box.x1] = view.cut(logits, box)[0].numpy()
    code: dict[str, Any] = rle.encode(mask)
    return {"size": list(size), "counts": code["counts"].decode()}
