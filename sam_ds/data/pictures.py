"""From a file of any kind of picture to RGB pixels, upright or as they are stored."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from sam_ds.data.files import BadSampleError, Files, unreadable
from sam_ds.data.imagenet import PictureIndex
from sam_ds.data.reader import MOST_BYTES, check_pixels, fast_pixels, fast_size

# Pillow tells a file's kind by its content, whatever it is called; it has others, some of which start programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
# A file of less than one byte to so many pixels, more than any packing of pictures that show something gives, would
# only take time and memory; small ones may.
_MOST_PER_BYTE = 10_000
_LARGE = 1 << 24  # pixels
_ORIENTATION = 0x0112  # EXIF's tag
# Of every orientation, how the stored pixels [h, w, 3] are made upright: (transpose, flip rows, flip columns).
_UPRIGHT = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}

Pixels = npt.NDArray[np.uint8]

logging.getLogger("PIL").setLevel(logging.CRITICAL)  # it logs what it then raises, without the file's name


class PictureReader:
    """Reads pictures of one index."""

    def __init__(self, index: PictureIndex) -> None:
        self.index = index
        self._files = Files(index.root, index.shards)

    def read(self, sample: int) -> tuple[bytes, int]:
        """The file's content, and its class.

        Raises:
            BadSampleError: the file is gone, or cut, or too large, or the index damaged.
            UserError: the machine has no more files or memory to give.
        """
        row, (shard, name, file) = self.index[sample], self.index.place(sample)
        try:
            content = self._files.read(shard, name, int(row["offset"]), int(row["size"]), "file", MOST_BYTES["jpg"])
        except OSError as error:
            raise unreadable(error, file) from error
        return content, self.index.label(sample)


@dataclass(frozen=True)
class Picture:
    """A picture whose header is read; its pixels are decoded when it is known what part of them is looked at.

    Where nothing but the pixels says which way is up, a picture is turned as its orientation tag says, as a model
    should learn it as people see it. Boxes and label maps, as SA-1B's masks, were drawn on the pixels as they are
    stored: there the tag is not looked at.
    """

    size: tuple[int, int]  # height and width, of what ``pixels`` gives
    _content: bytes
    _upright: bool  # whether the tag is looked at
    _orientation: int = 1  # how it is turned
    _decoded: Pixels | None = None  # of what is not decoded at a smaller scale

    def pixels(self, denominator: int = 1) -> tuple[Pixels, int]:
        """RGB, uint8 [ceil(h / d), ceil(w / d), 3], and d: ``denominator``, or 1 where the format has no scaled decode.

        Raises:
            BadSampleError: the file is damaged.
        """
        if self._decoded is not None:
            return self._decoded, 1
        transpose, rows, columns = _UPRIGHT[self._orientation]
        height, width = (-(-side // denominator) for side in self.size)
        try:
            pixels = fast_pixels(self._content, (width, height) if transpose else (height, width))
        except ValueError:
            # It takes nothing that is not right to the last byte; Pillow bears bytes too many, and tells what is cut.
            pixels, denominator = _decode_pillow(self._content, self._upright), 1
            height, width = self.size
        else:
            pixels = pixels.transpose(1, 0, 2) if transpose else pixels
            pixels = np.ascontiguousarray(pixels[:: -1 if rows else 1, :: -1 if columns else 1])
        if pixels.shape[:2] != (height, width):
            raise BadSampleError(f"its JPEG decodes to {pixels.shape[:2]} instead of {(height, width)}")
        return pixels, denominator


def open_picture(content: bytes, upright: bool = True) -> Picture:
    """
    Args:
        upright: turn it as its orientation tag says.

    Raises:
        BadSampleError: it is no picture of the formats that are read, or a damaged one, or too large.
    """
    try:
        stored = fast_size(content)
    except ValueError:
        stored = None
    if stored is None:
        pixels = _decode_pillow(content, upright)
        return Picture(pixels.shape[:2], content, upright, _decoded=pixels)
    check_pixels(stored)
    orientation = _orientation(content) if upright else 1
    transpose = _UPRIGHT[orientation][0]
    return Picture(stored[::-1] if transpose else stored, content, upright, orientation)


def _orientation(jpeg: bytes) -> int:
    """EXIF's, 1 where there is none; few have any, and a search is cheaper than Pillow's look at the header."""
    tables = jpeg.find(b"\xff\xdb")  # what is said about a picture comes before them
    if b"Exif\0\0" not in jpeg[:tables]:
        return 1
    with _opened(jpeg) as picture:
        found = picture.getexif().get(_ORIENTATION, 1)
    return found if found in _UPRIGHT else 1


def _decode_pillow(content: bytes, upright: bool) -> Pixels:
    """RGB of any format; of an animation, the first picture."""
    if not content:
        raise BadSampleError("the file is empty")
    with _opened(content) as picture:
        check_pixels((picture.height, picture.width))
        if max(_LARGE, len(content) * _MOST_PER_BYTE) < picture.height * picture.width:
            size = f"{picture.width}x{picture.height}"
            raise BadSampleError(f"the picture is damaged: {len(content)} bytes say that they are {size} pixels")
        return _rgb(ImageOps.exif_transpose(picture) if upright else picture)


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """What Pillow opens. All that it raises then, and inside, is BadSampleError."""
    try:
        with _quiet(), Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            yield picture
    except BadSampleError:
        raise
    except MemoryError as error:
        raise BadSampleError(f"it does not fit into memory: {error}") from error
    except UnidentifiedImageError as error:
        raise BadSampleError(f"the file is no picture of a known format ({', '.join(_FORMATS)})") from error
    except Exception as error:  # what a damaged file makes Pillow raise is documented nowhere
        raise BadSampleError(f"the picture is damaged: {str(error) or type(error).__name__}") from error


def _rgb(picture: Image.Image) -> Pixels:
    """uint8 [h, w, 3] of any mode. What is transparent lies on white, as on a page."""
    if picture.mode in ("I", "F"):
        raise BadSampleError(f"its pixels are numbers of 32 bits ({picture.mode}), of which nobody says what is white")
    if picture.mode.startswith("I;16"):
        grey = (np.asarray(picture).astype(np.uint32) * 255 + 32767) // 65535
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if picture.has_transparency_data:
        over = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return np.array(picture.convert("RGB"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow's warnings name no file and change nothing: what cannot be decoded raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
