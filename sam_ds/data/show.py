"""One sample for people: the picture, with its masks in colours if it has any, and what is known about it in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sam_ds.config.errors import UserError
from sam_ds.config.schema import DataConfig
from sam_ds.data.files import BadSampleError
from sam_ds.data.halves import halves
from sam_ds.data.imagenet import PictureIndex, open_pictures
from sam_ds.data.index import Index, open_index
from sam_ds.data.pictures import PictureReader, open_picture
from sam_ds.data.reader import Pixels, Raw, Reader, decode
from sam_ds.data.samples import parse_runs, usable_masks
from sam_ds.data.scan import has_pairs
from sam_ds.ops.rasterize import rasterize
from sam_ds.types import MaskRuns


def show_sample(path: str, sample: int, output: str) -> list[str]:
    """Draw picture ``sample`` of the set at ``path`` to the file ``output``, with all the masks that it has.

    Returns:
        lines about the sample.

    Raises:
        UserError: there is no such picture, or it is bad, or the file cannot be written.
    """
    index = open_index(path) if has_pairs(path) else open_pictures(halves(path)[0])
    if not 0 <= sample < len(index):
        raise UserError(f"{index.root} has pictures 0 to {len(index) - 1}, not {sample}")
    try:
        pixels, about = _masks(index, sample) if isinstance(index, Index) else _picture(index, sample)
    except BadSampleError as error:
        raise UserError(f"{index.name(sample)}: {error}") from error
    try:
        Image.fromarray(pixels).save(output)
    except (OSError, ValueError) as error:
        raise UserError(f"{output} cannot be written: {error}") from error
    return [
        f"{index.name(sample)}: picture {sample} of {len(index)}, {pixels.shape[1]}x{pixels.shape[0]} pixels",
        about,
        f"drawn to {Path(output)}",
    ]


def _picture(index: PictureIndex, sample: int) -> tuple[Pixels, str]:
    content, label = PictureReader(index).read(sample)
    pixels, _ = open_picture(content).pixels()
    return pixels, f"class {label} of {len(index.classes)}: {index.classes[label]}" if label >= 0 else "it has no class"


def _masks(index: Index, sample: int) -> tuple[Pixels, str]:
    raw = Reader(index).read(sample)
    pixels, masks = decode(raw.jpeg, raw.size), usable_masks(raw, DataConfig())
    areas = np.array([a["area"] for a in raw.annotations]) / (raw.size[0] * raw.size[1])
    return _paint(pixels, _rasters(raw)), (
        f"{len(raw.annotations)} masks, {len(masks.ids)} pass the default filters; part of the picture they cover: "
        f"{areas.min():.2%} to {areas.max():.2%}, median {np.median(areas):.2%}"
    )


def _rasters(raw: Raw) -> torch.Tensor:
    """uint8 [O, h, w] at the picture's own size."""
    count = len(raw.annotations)
    ends, offsets = parse_runs(raw, range(count))
    sizes = torch.tensor([raw.size] * count, dtype=torch.int32)
    masks = MaskRuns(torch.from_numpy(ends), torch.from_numpy(offsets), sizes)
    return rasterize(masks, torch.eye(2, 3).repeat(count, 1, 1), raw.size)


def _paint(pixels: Pixels, rasters: torch.Tensor) -> Pixels:
    """Half the colour of the mask on top, the smallest mask last."""
    canvas = pixels.astype(np.float32)
    for number in rasters.flatten(1).sum(1, dtype=torch.int64).argsort(descending=True).tolist():
        color = np.random.default_rng(number).uniform(40, 255, 3)
        inside = rasters[number].bool().numpy()
        canvas[inside] = 0.5 * canvas[inside] + 0.5 * color
    return canvas.astype(np.uint8)
