"""Boxes with classes, of COCO's pictures, as a view shows them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam_ds.config.schema import DataConfig
from sam_ds.data.annotated import Annotated, Maker, Sample, picture_of
from sam_ds.data.coco import CocoSet
from sam_ds.data.transforms import View, boxes_in_view
from sam_ds.types import BoxBatch

_SMALLEST = 1.0  # pixels of the input: a box of which a view leaves less is not trained on


class Boxes(NamedTuple):
    boxes: npt.NDArray[np.float64]  # [O, 4]
    labels: npt.NDArray[np.int64]  # [O]


class BoxMaker(Maker[Boxes, BoxBatch]):
    """Makes batches of a set of COCO's."""

    def __init__(self, pictures: CocoSet, data: DataConfig, side: int, seed: int = 0) -> None:
        super().__init__(pictures, data, side, seed)
        self.pictures = pictures

    def read(self, sample: int) -> Annotated[Boxes]:
        height, width = self.pictures.sizes[sample].tolist()
        content = picture_of(self, self.pictures.files[sample])
        return Annotated(content, (height, width), Boxes(*self.pictures.boxes_of(sample)))

    def seen(self, truth: Boxes, view: View) -> Boxes:
        """Left, top, right and bottom in the input's pixels, of those of which enough is in view."""
        boxes, _ = boxes_in_view(view, truth.boxes)
        keep = (boxes[:, 2:] - boxes[:, :2] >= _SMALLEST).all(1)
        return Boxes(boxes[keep], truth.labels[keep])

    def nothing(self) -> Boxes:
        return Boxes(np.zeros((0, 4)), np.zeros(0, np.int64))

    def collate(self, images: Tensor, samples: list[Sample[Boxes]]) -> BoxBatch:
        return BoxBatch(
            images=images,
            valid_sizes=torch.tensor([s.view.valid_size for s in samples], dtype=torch.int32),
            to_source=torch.stack([torch.from_numpy(s.view.to_source()[:2]).float() for s in samples]),
            boxes=torch.from_numpy(np.concatenate([s.truth.boxes for s in samples])).float(),
            labels=torch.from_numpy(np.concatenate([s.truth.labels for s in samples])),
            counts=torch.tensor([len(s.truth.labels) for s in samples]),
            sample_ids=torch.tensor([s.sample for s in samples]),
            positions=torch.tensor([s.position for s in samples]),
        )
