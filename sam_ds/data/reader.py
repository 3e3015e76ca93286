"""From the index to a picture's bytes and its annotations, and from JPEG bytes to pixels."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sam_ds.data.files import BadSampleError, Files, unreadable
from sam_ds.data.index import Index

try:
    import simplejpeg
except ImportError:  # optional: Pillow does the same, slower
    simplejpeg = None

_LONGEST_SIDE = 65535  # of a JPEG
_MOST_PIXELS = 178_956_970  # of a picture; Pillow takes what has more for a decompression bomb
MOST_BYTES = {"json": 64 << 20, "jpg": 256 << 20}  # of a file; SA-1B's largest have some two and five million

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Raw:
    """A sample as it lies on disk."""

    jpeg: bytes
    size: tuple[int, int]  # height and width, as the JSON says
    annotations: list[dict[str, Any]]


class Reader:
    """Reads samples of one index."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._files = Files(index.root, index.shards)

    def read(self, sample: int) -> Raw:
        """
        Raises:
            BadSampleError: a file is gone, or cut, or its JSON is not SA-1B's.
            UserError: the machine has no more files or memory to give.
        """
        row = self.index[sample]
        try:
            info = json.loads(self._bytes(row, "json"))
            size = int(info["image"]["height"]), int(info["image"]["width"])
            annotations = info["annotations"]
            jpeg = self._bytes(row, "jpg")
        except BadSampleError:  # a ValueError too
            raise
        except OSError as error:
            raise unreadable(error, self.index.name(sample)) from error
        except (KeyError, TypeError, OverflowError) as error:  # OverflowError: an infinite size
            raise BadSampleError(f"its JSON is not as SA-1B's: {type(error).__name__} {error}") from error
        except (ValueError, RecursionError) as error:
            raise BadSampleError(f"its JSON is damaged: {error}") from error
        if min(size) > 0 and max(size) <= _LONGEST_SIDE:
            check_pixels(size)
        if min(size) < 1 or max(size) > _LONGEST_SIDE or not isinstance(annotations, list):
            raise BadSampleError(f"its JSON is not as SA-1B's: size {size}, annotations {type(annotations).__name__}")
        return Raw(jpeg, size, annotations)

    def _bytes(self, row: np.void, part: str) -> bytes:
        name = f"{os.fsdecode(bytes(row['stem']))}.{part}"
        offset, size = int(row[f"{part}_offset"]), int(row[f"{part}_size"])
        return self._files.read(int(row["shard"]), name, offset, size, part, MOST_BYTES[part])


def check_pixels(size: tuple[int, int]) -> None:
    """
    Raises:
        BadSampleError: a picture of this height and width is larger than any that is read.
    """
    if size[0] * size[1] > _MOST_PIXELS:
        raise BadSampleError(f"it is too large: {size[1]}x{size[0]} pixels, at most {_MOST_PIXELS:,} are read")


def decode(jpeg: bytes, size: tuple[int, int], denominator: int = 1) -> Pixels:
    """RGB pixels of a JPEG, uint8 [ceil(h / denominator), ceil(w / denominator), 3].

    The decoder itself shrinks: it transforms fewer coefficients back, which costs less and filters better than
    dropping pixels. The orientation tag is not looked at, as the masks were drawn on the pixels as they are stored.

    Args:
        size: height and width that the picture must have.
        denominator: 1, 2, 4 or 8.

    Raises:
        BadSampleError: not a whole JPEG, or of another size.
    """
    wanted = -(-size[0] // denominator), -(-size[1] // denominator)
    try:
        found = fast_size(jpeg)
        if found:
            _check_size(found, size)
            pixels = fast_pixels(jpeg, wanted)
        else:
            pixels = _decode_pillow(jpeg, size, denominator)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # the last two: broken headers
        if isinstance(error, BadSampleError):
            raise
        raise BadSampleError(f"its JPEG is damaged: {error}") from error
    if pixels.shape[:2] != wanted:
        raise BadSampleError(f"its JPEG decodes to {pixels.shape[:2]} instead of {wanted}")
    return pixels


def fast_size(jpeg: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG that ``fast_pixels`` can decode; None where there is no simplejpeg, or for CMYK.

    Raises:
        ValueError: it is no JPEG.
    """
    if simplejpeg is None:
        return None
    height, width, space, _ = simplejpeg.decode_jpeg_header(jpeg)
    return (height, width) if space in ("YCbCr", "Gray", "RGB") else None


def fast_pixels(jpeg: bytes, wanted: tuple[int, int]) -> Pixels:
    """RGB, at the smallest scale that libjpeg-turbo has of at least the ``wanted`` height and width.

    Raises:
        ValueError: it is damaged.
    """
    pixels: Pixels = simplejpeg.decode_jpeg(jpeg, "RGB", min_height=wanted[0], min_width=wanted[1])
    return pixels


def _decode_pillow(jpeg: bytes, size: tuple[int, int], denominator: int) -> Pixels:
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:  # others may start programs
        _check_size((picture.height, picture.width), size)
        if denominator > 1:
            picture.draft("RGB" if picture.mode != "CMYK" else None, (size[1] // denominator, size[0] // denominator))
        pixels = np.array(picture.convert("RGB"))
    return pixels


def _check_size(found: tuple[int, int], said: tuple[int, int]) -> None:
    if found != said:
        raise BadSampleError(f"its JPEG is {found[1]}x{found[0]}, its annotation says {said[1]}x{said[0]}")
