"""Average precision of boxes and of masks, by COCO's own evaluation."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from sam_ds.config.errors import UserError
from sam_ds.data import runs
from sam_ds.data.reader import check_pixels
from sam_ds.evaluation import tables
from sam_ds.modeling.sam.sam import normalize
from sam_ds.types import BoxBatch

if TYPE_CHECKING:
    from sam_ds.data.coco import CocoSet
    from sam_ds.modeling.detector import Detections, Detector

MAX_FOUND = 100  # boxes of a picture that COCO's evaluation looks at, those with the highest scores
_FARTHEST = 1_000_000  # pixels that a polygon's corner may be away; pycocotools takes a step for each on every edge
# COCOeval's twelve figures, in its order.
_FIGURES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
_SHOWN = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "AP small", "ap_medium": "AP medium"}
_SHOWN |= {"ap_large": "AP large", "ar100": "AR, 100 boxes"}

Rows = npt.NDArray[np.float64]  # [N, 7]: picture's number, left, top, width, height, score, category's number


class Found(NamedTuple):
    """What one rank found."""

    samples: list[int]  # that it looked at
    rows: Rows


class Watcher(Protocol):
    """Sees what was found, to draw it."""

    def see(self, batch: BoxBatch, picture: int, boxes: Tensor, labels: Tensor, scores: Tensor) -> None:
        """One picture of a batch, with what was found in it, the best first: boxes [N, 4] as those of the batch."""
        ...


@torch.no_grad()
def find_boxes(
    model: Detector, batches: Iterable[BoxBatch], pictures: CocoSet, device: torch.device, watcher: Watcher | None
) -> Found:
    """The boxes that a detector finds, in the pictures' own pixels, with the numbers of the set's JSON.

    Black pictures, which fill a batch up or stand for bad ones, count as none.
    """
    samples, rows = [], [np.zeros((0, 7))]
    for batch in batches:
        found = model(normalize(batch.images.to(device), batch.valid_sizes.to(device)))
        boxes, labels, scores = best_boxes(found, batch.images.shape[-1])
        for picture, sample in enumerate(batch.sample_ids.tolist()):
            if sample < 0:
                continue
            samples.append(sample)
            own = boxes[picture].cpu(), labels[picture].cpu(), scores[picture].cpu()
            rows.append(_rows(batch, picture, sample, pictures, *own))
            if watcher:
                watcher.see(batch, picture, *own)
    return Found(samples, np.concatenate(rows))


def best_boxes(found: Detections, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes float32 [B, N, 4] (left, top, right, bottom in pixels), classes [B, N] and scores [B, N], best first.

    A query stands for as many boxes as there are classes, as in RT-DETR's own evaluation.
    """
    logits, boxes = found.logits[:, -1], found.boxes[:, -1]  # of the last layer: [B, Q, C], [B, Q, 4]
    num_classes = logits.shape[-1]
    scores, places = logits.sigmoid().flatten(1).topk(min(MAX_FOUND, logits[0].numel()), dim=1)  # [B, N]
    chosen = boxes.gather(1, (places // num_classes)[..., None].expand(-1, -1, 4))
    centre, size = chosen[..., :2], chosen[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1) * side, places % num_classes, scores


def _rows(
    batch: BoxBatch, picture: int, sample: int, pictures: CocoSet, boxes: Tensor, labels: Tensor, scores: Tensor
) -> Rows:
    matrix = batch.to_source[picture].double()  # [2, 3]; an evaluation neither turns nor shears
    height, width = pictures.sizes[sample].tolist()
    most = torch.tensor([width, height], dtype=torch.float64)
    corners = boxes.double().unflatten(1, (2, 2)) * matrix.diagonal() + matrix[:, 2]  # [N, 2, 2]
    low, high = corners.clamp(min=0).minimum(most).unbind(1)
    numbers = torch.tensor(pictures.categories)[labels]
    own = torch.full((len(boxes), 1), float(pictures.picture_ids[sample]), dtype=torch.float64)
    rows: Rows = torch.cat([own, low, high - low, scores[:, None], numbers[:, None]], dim=1).numpy()
    return rows


def score_boxes(pictures: CocoSet, samples: Sequence[int], found: Rows) -> dict[str, float]:
    """COCO's figures of boxes found in some of the pictures, those of all ranks together.

    Raises:
        UserError: the pictures have no box.
    """
    return _score("bbox", pictures, _truth(pictures), samples, as_results(found))


def score_masks(
    pictures: CocoSet, truth: COCO, samples: Sequence[int], results: list[dict[str, Any]]
) -> dict[str, float]:
    """COCO's figures of masks, in COCO's format of results, found in some of the pictures.

    Args:
        truth: their ``true_masks``.

    Raises:
        UserError: the pictures have no mask.
    """
    return _score("segm", pictures, truth, samples, results)


def true_masks(pictures: CocoSet) -> COCO:
    """What masks are scored by. It is made before any is looked for, so that a mistake in it costs no time.

    Raises:
        UserError: an annotation has no mask, or one that is not as COCO's.
    """
    truth = _truth(pictures)
    sizes = {row["id"]: (row["height"], row["width"]) for row in truth.dataset["images"]}
    marks, codes = truth.dataset["annotations"], list[dict[str, Any]]()
    try:
        codes.extend(_run_lengths(mark["segmentation"], sizes[mark["image_id"]]) for mark in marks)
    except Exception as error:  # what pycocotools raises is documented nowhere, and may be an Exception itself
        words = f"the segmentation of annotations[{len(codes)}] is not as COCO's: {type(error).__name__} {error}"
        raise UserError(f"{pictures.annotations}: {words}") from error
    for mark, code in zip(marks, codes, strict=True):
        mark["segmentation"] = code
    return truth


def _run_lengths(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Polygons, or run lengths in either of COCO's forms, as the form of pycocotools, for this height and width.

    Its C code looks at nothing: run lengths of another sum may never end there, and far corners end the process.
    """
    check_pixels(size)
    if not segmentation:
        raise ValueError("it is empty")
    if isinstance(segmentation, list):
        corners = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
        polygons = [polygon.ravel().tolist() for polygon in corners if len(polygon) > 2]  # others have no area
        if not polygons:
            raise ValueError("no polygon has three corners")
        if not (np.abs(np.concatenate(corners)) <= _FARTHEST).all():  # which nothing is that is no number
            raise ValueError(f"a corner is not within {_FARTHEST:,} pixels")
        codes = rle.frPyObjects(polygons, *size)
    else:
        try:
            runs.parse([segmentation], size)
        except runs.BadRunsError as error:
            raise ValueError(f"its RLE {error.reason}") from error
        codes = [rle.frPyObjects(segmentation, *size) if isinstance(segmentation["counts"], list) else segmentation]
    code: dict[str, Any] = rle.merge(codes)
    return code


def as_results(found: Rows) -> list[dict[str, Any]]:
    """COCO's format of results."""
    return [
        {"image_id": int(row[0]), "category_id": int(row[6]), "bbox": row[1:5], "score": row[5]}
        for row in found.tolist()
    ]


def _score(
    kind: str, pictures: CocoSet, truth: COCO, samples: Sequence[int], results: list[dict[str, Any]]
) -> dict[str, float]:
    """Figures from 0 to 1; those of sizes that no object has are left out."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what we return
        evaluation = COCOeval(truth, truth.loadRes(results) if results else COCO(), kind)
        evaluation.params.imgIds = pictures.picture_ids[list(samples)].tolist()
        evaluation.params.catIds = list(pictures.categories)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = dict(zip(_FIGURES, evaluation.stats.tolist(), strict=True))
    if figures["ap"] < 0:
        raise UserError(f"evaluation: {pictures.annotations} has nothing to find in the pictures that were looked at")
    return {name: value for name, value in figures.items() if value >= 0}


def _truth(pictures: CocoSet) -> COCO:
    """The annotations, crowds too. Numbered anew: to COCOeval, an object with the number 0 is none."""
    raw = json.loads(pictures.annotations.read_bytes())
    marks: list[dict[str, Any]] = []
    for mark in raw["annotations"]:
        left, top, width, height = map(float, mark["bbox"])
        marks.append(
            {
                "id": len(marks) + 1,
                "image_id": int(mark["image_id"]),
                "category_id": int(mark["category_id"]),
                "iscrowd": int(bool(mark.get("iscrowd", 0))),
                "bbox": [left, top, width, height],
                "area": float(mark.get("area", width * height)),
                "segmentation": mark.get("segmentation"),
            }
        )
    sizes = zip(pictures.picture_ids.tolist(), pictures.sizes.tolist(), strict=True)
    truth = COCO()
    truth.dataset = {
        "images": [{"id": number, "height": height, "width": width} for number, (height, width) in sizes],
        "categories": [{"id": number} for number in pictures.categories],
        "annotations": marks,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def coco_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """COCO's figures side by side, in percent."""
    names = [name for name in _SHOWN if any(name in values for values in columns.values())]
    rows = {
        _SHOWN[name]: [f"{100 * values[name]:.1f}" if name in values else "-" for values in columns.values()]
        for name in names
    }
    return tables.table(list(columns), rows)
