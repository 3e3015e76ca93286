"""From the index to a picture's bytes and its annotations, and from JPEG bytes to pixels."""

from __future__ import annotations

import io
import json
import os
import stat
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sam_ds.data.index import Index
from sam_ds.data.limits import raise_if_of_machine
from sam_ds.data.scan import LOOSE, leads_outside

try:
    import simplejpeg
except ImportError:  # optional: Pillow does the same, slower
    simplejpeg = None

_LONGEST_SIDE = 65535  # of a JPEG
_MOST_PIXELS = 178_956_970  # of a picture; Pillow takes what has more for a decompression bomb
_MOST_BYTES = {"json": 64 << 20, "jpg": 256 << 20}  # of a file; SA-1B's largest have some two and five million
_MOST_OPEN = 64  # tars of a Reader; SA-1B has a thousand, and a process may often open 1024 files

Pixels = npt.NDArray[np.uint8]


class BadSampleError(ValueError):
    """This picture cannot be trained on; the message says why."""


@dataclass(frozen=True)
class Raw:
    """A sample as it lies on disk."""

    jpeg: bytes
    size: tuple[int, int]  # height and width, as the JSON says
    annotations: list[dict[str, Any]]


class Reader:
    """Reads samples of one index. The tars last read stay open: a read is then one ``pread`` for each of two parts."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._descriptors: dict[int, int] = {}  # by shard, the one last read last
        weakref.finalize(self, _close, self._descriptors)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.index,)

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
            raise_if_of_machine(error, self.index.name(sample))
            raise BadSampleError(f"cannot be read: {error.strerror or error}") from error
        except (KeyError, TypeError, OverflowError) as error:  # OverflowError: an infinite size
            raise BadSampleError(f"its JSON is not as SA-1B's: {type(error).__name__} {error}") from error
        except (ValueError, RecursionError) as error:
            raise BadSampleError(f"its JSON is damaged: {error}") from error
        if min(size) > 0 and max(size) <= _LONGEST_SIDE and size[0] * size[1] > _MOST_PIXELS:
            raise BadSampleError(f"it is too large: {size[1]}x{size[0]} pixels, at most {_MOST_PIXELS:,} are read")
        if min(size) < 1 or max(size) > _LONGEST_SIDE or not isinstance(annotations, list):
            raise BadSampleError(f"its JSON is not as SA-1B's: size {size}, annotations {type(annotations).__name__}")
        return Raw(jpeg, size, annotations)

    def _bytes(self, row: np.void, part: str) -> bytes:
        size, offset, shard = int(row[f"{part}_size"]), int(row[f"{part}_offset"]), int(row["shard"])
        if shard == LOOSE:
            return self._loose_bytes(os.fsdecode(bytes(row["stem"])), part)
        if not 0 <= shard < len(self.index.shards) or offset < 0 or size < 0:
            raise BadSampleError("its row of the index is damaged: make it anew with sam-ds data index")
        _check_bytes(size, part)
        try:
            content = os.pread(self._descriptor(shard), size, offset)
        except OSError:
            if shard in self._descriptors:  # it may be the open file that is bad, not the tar: a server that came back
                os.close(self._descriptors.pop(shard))
            raise
        if len(content) != size:
            raise BadSampleError(f"its tar ends within it: {len(content)} of {size} bytes of the {part}")
        return content

    def _loose_bytes(self, stem: str, part: str) -> bytes:
        """A link may lead anywhere that the user may read: it is how sets are shared. A pipe or a device may not."""
        if leads_outside(stem):
            raise BadSampleError("its row of the index leads out of the folder: make it anew with sam-ds data index")
        path = self.index.root / f"{stem}.{part}"
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadSampleError(f"its {part} is no file")
        _check_bytes(status.st_size, part)
        return path.read_bytes()

    def _descriptor(self, shard: int) -> int:
        descriptor = self._descriptors.pop(shard, None)
        if descriptor is None:
            while len(self._descriptors) >= _MOST_OPEN:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            descriptor = os.open(self.index.root / self.index.shards[shard], os.O_RDONLY)
        self._descriptors[shard] = descriptor
        return descriptor


def _check_bytes(size: int, part: str) -> None:
    if size > _MOST_BYTES[part]:
        raise BadSampleError(f"its {part} has {size:,} bytes, at most {_MOST_BYTES[part]:,} are read")


def _close(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


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
        pixels = _decode_fast(jpeg, size, wanted) if simplejpeg else None
        if pixels is None:
            pixels = _decode_pillow(jpeg, size, denominator)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # the last two: broken headers
        if isinstance(error, BadSampleError):
            raise
        raise BadSampleError(f"its JPEG is damaged: {error}") from error
    if pixels.shape[:2] != wanted:
        raise BadSampleError(f"its JPEG decodes to {pixels.shape[:2]} instead of {wanted}")
    return pixels


def _decode_fast(jpeg: bytes, size: tuple[int, int], wanted: tuple[int, int]) -> Pixels | None:
    """None for what libjpeg-turbo cannot turn into RGB: CMYK."""
    height, width, space, _ = simplejpeg.decode_jpeg_header(jpeg)
    _check_size((height, width), size)
    if space not in ("YCbCr", "Gray", "RGB"):
        return None
    pixels: Pixels = simplejpeg.decode_jpeg(jpeg, "RGB", min_height=wanted[0], min_width=wanted[1])
    return pixels


def _decode_pillow(jpeg: bytes, size: tuple[int, int], denominator: int) -> Pixels:
    with Image.open(io.BytesIO(jpeg)) as picture:
        _check_size((picture.height, picture.width), size)
        if denominator > 1:
            picture.draft("RGB" if picture.mode != "CMYK" else None, (size[1] // denominator, size[0] // denominator))
        pixels = np.array(picture.convert("RGB"))
    return pixels


def _check_size(found: tuple[int, int], said: tuple[int, int]) -> None:
    if found != said:
        raise BadSampleError(f"its JPEG is {found[1]}x{found[0]}, its JSON says {said[1]}x{said[0]}")
