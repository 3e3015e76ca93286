"""One sample, from its place in the stream to the tensors of a batch. All of it runs in the loader's processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam_ds.config.schema import DataConfig
from sam_ds.data import runs
from sam_ds.data.files import BadSampleError
from sam_ds.data.index import Index
from sam_ds.data.pixels import random_color, show
from sam_ds.data.quarantine import Bad, first_good
from sam_ds.data.reader import Raw, Reader, decode
from sam_ds.data.sampler import Sampler
from sam_ds.data.transforms import View, random_view, visible_part, whole_view
from sam_ds.types import MaskRuns, SegmentBatch

_VIEWS = 4  # random views drawn before a picture is shown whole
_MOSTLY = 0.5  # a mask with this part of its box in view is trained on

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sample:
    """All of a sample but its pixels, which are written where the batch keeps them."""

    valid_size: tuple[int, int]
    to_source: Tensor  # float32 [2, 3]
    ends: runs.Ends  # [R]
    offsets: runs.Offsets  # [O + 1]
    size: tuple[int, int]  # height and width of the source
    mask_ids: Ids  # [O]
    sample: int
    position: int


@dataclass(frozen=True)
class Masks:
    """The masks of a picture that pass the filters."""

    ids: Ids  # [O]    place in the JSON
    boxes: Floats  # [O, 4]  x, y, width, height
    areas: Floats  # [O]


class SampleMaker:
    """Makes samples of one index; every random choice is a function of (seed, epoch, sample).

    Args:
        image_size: side of the model's input.
        reader: one of this index, to share its open files.
    """

    def __init__(
        self, index: Index, data: DataConfig, image_size: int, seed: int, reader: Reader | None = None
    ) -> None:
        self.reader, self.data, self.seed = reader or Reader(index), data, seed
        self.side = data.crop_size or image_size
        self.crop = self.side / image_size
        self.sampler = Sampler(len(index), seed)

    def for_training(self, position: int, image: Tensor) -> tuple[Sample | None, list[Bad]]:
        """The sample at a stream position, or the one that takes its place; and the bad ones met on the way.

        Its pixels go to ``image``, uint8 [3, S, S] and zero. None if one substitute after another is bad too.
        """
        name = self.reader.index.name
        return first_good(self.sampler, position, lambda s: self._training_sample(s, position, image), name)

    def for_evaluation(self, sample: int, max_masks: int, image: Tensor) -> tuple[Sample, list[Bad]]:
        """A picture as it is, with at most ``max_masks`` masks (0: all). A bad one stays black and has no masks."""
        try:
            raw = self.reader.read(sample)
            masks = usable_masks(raw, self.data)
            rng = np.random.default_rng((self.seed, sample))
            chosen = _draw(rng, masks.ids, max_masks or len(masks.ids))
            view = whole_view(raw.size, self.side, self.data.exact)
            return _assemble(raw, view, chosen, None, image, sample, sample), []
        except BadSampleError as error:
            return self.blank(sample), [Bad(sample, self.reader.index.name(sample), str(error))]

    def black(self, count: int) -> Tensor:
        """uint8 [count, 3, S, S], for pictures to be written to."""
        return torch.zeros(count, 3, self.side, self.side, dtype=torch.uint8)

    def blank(self, sample: int) -> Sample:
        """What goes with a black picture: no masks."""
        size = (self.side, self.side)
        ends, offsets, ids = np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.int64)
        return Sample(size, torch.eye(2, 3), ends, offsets, size, ids, sample, sample)

    def _training_sample(self, sample: int, position: int, image: Tensor) -> Sample:
        raw = self.reader.read(sample)
        masks = usable_masks(raw, self.data)
        rng = np.random.default_rng((self.seed, self.sampler.epoch(position), sample))
        view, visible = self._view(rng, raw.size, masks)
        chosen = _draw(rng, masks.ids[visible], self.data.max_masks)
        color = random_color(rng, self.data.transforms)
        return _assemble(raw, view, chosen, color, image, sample, position)

    def _view(self, rng: np.random.Generator, size: tuple[int, int], masks: Masks) -> tuple[View, Bools]:
        """A random view and which masks count in it: those mostly in view, or if there is none, any in view."""
        transforms, exact = self.data.transforms, self.data.exact
        for _ in range(_VIEWS):
            view = random_view(rng, transforms, size, self.side, masks.boxes, masks.areas, exact, self.crop)
            parts = visible_part(view, masks.boxes)
            if parts.max() > 0:
                return view, parts >= min(_MOSTLY, parts.max())
        return whole_view(size, self.side, exact), np.ones(len(masks.ids), bool)


def _assemble(
    raw: Raw, view: View, chosen: Ids, color: Floats | None, image: Tensor, sample: int, position: int
) -> Sample:
    ends, offsets = parse_runs(raw, chosen)
    show(decode(raw.jpeg, raw.size, view.denominator), view, color, image)
    to_source = torch.from_numpy(view.to_source()[:2]).float()
    return Sample(view.valid_size, to_source, ends, offsets, raw.size, chosen, sample, position)


def usable_masks(raw: Raw, data: DataConfig) -> Masks:
    """The masks that pass the recipe's filters.

    Raises:
        BadSampleError: there is none, or an annotation is not as SA-1B's.
    """
    if not raw.annotations:
        raise BadSampleError("it has no masks")
    try:
        fields = [_fields(annotation) for annotation in raw.annotations]
        table = np.array(fields, np.float64)  # [O, 7]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadSampleError(f"its annotations are not as SA-1B's: {type(error).__name__} {error}") from error
    areas = table[:, 4]
    pixels = raw.size[0] * raw.size[1]
    keep = (areas >= max(1, data.min_area)) & (areas <= data.max_area * pixels)
    keep &= (table[:, 5] >= data.min_predicted_iou) & (table[:, 6] >= data.min_stability)
    keep &= (table[:, 2:4] > 0).all(1) & np.isfinite(table).all(1)
    if not keep.any():
        raise BadSampleError(f"none of its {len(keep)} masks passes the filters (area, predicted IoU, stability)")
    return Masks(np.flatnonzero(keep), table[keep, :4], areas[keep])


def parse_runs(raw: Raw, chosen: Sequence[int] | Ids) -> tuple[runs.Ends, runs.Offsets]:
    """Run ends and offsets of some of a picture's masks.

    Raises:
        BadSampleError: one is damaged, or is no mask of this picture.
    """
    try:
        return runs.parse([raw.annotations[i]["segmentation"] for i in chosen], raw.size)
    except runs.BadRunsError as error:
        raise BadSampleError(f"the RLE of its mask {chosen[error.mask]} {error.reason}") from error
    except (KeyError, TypeError) as error:
        raise BadSampleError(f"its annotations are not as SA-1B's: {type(error).__name__} {error}") from error


def _fields(annotation: dict[str, Any]) -> tuple[float, ...]:
    x, y, width, height = annotation["bbox"]
    scores = annotation.get("predicted_iou", 1.0), annotation.get("stability_score", 1.0)
    return (x, y, width, height, annotation["area"], *scores)


def _draw(rng: np.random.Generator, ids: Ids, most: int) -> Ids:
    """At most ``most`` of ``ids``, every subset as likely, ascending."""
    return np.sort(rng.permutation(ids)[:most])


def collate(images: Tensor, samples: list[Sample]) -> SegmentBatch:
    """One batch of samples, in their order; ``images`` is uint8 [B, 3, S, S]."""
    counts = [len(s.mask_ids) for s in samples]
    lengths = np.concatenate([np.diff(s.offsets) for s in samples])
    sizes = torch.tensor([s.size for s in samples], dtype=torch.int32)
    picture = torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts))
    runs_of_all = MaskRuns(
        ends=torch.from_numpy(np.concatenate([s.ends for s in samples])),
        offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)),
        sizes=sizes[picture],
    )
    return SegmentBatch(
        images=images,
        valid_sizes=torch.tensor([s.valid_size for s in samples], dtype=torch.int32),
        to_source=torch.stack([s.to_source for s in samples]),
        runs=runs_of_all,
        picture=picture,
        mask_ids=torch.from_numpy(np.concatenate([s.mask_ids for s in samples])),
        sample_ids=torch.tensor([s.sample for s in samples]),
        positions=torch.tensor([s.position for s in samples]),
    )
