"""Files of all kinds of pictures, and the index of a set of them that came with the set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from sam_ds.config.errors import UserError
from sam_ds.data import reader
from sam_ds.data.files import BadSampleError
from sam_ds.data.imagenet import NO_CLASS, PictureIndex, open_pictures
from sam_ds.data.pictures import PictureReader, open_picture
from tests.data.photos import encode, pack
from tests.fuzz.mutate import json_case, other_bytes

_KINDS = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "L", "1", "P", "RGBA", "LA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("RGB", "L", "1", "P"),
    "TIFF": ("RGB", "L", "1", "P", "RGBA", "CMYK", "I;16"),
    "GIF": ("P", "L"),
}


def _picture(rng: Random, kind: str, mode: str) -> bytes:
    size = (rng.randrange(1, 24), rng.randrange(1, 24), 3)
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, size, np.uint8)
    picture, exif = Image.fromarray(pixels), Image.Exif()
    picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    exif[0x0112] = rng.randrange(10)
    return encode(picture, kind, **({} if kind in ("BMP", "GIF") else {"exif": exif}))


class Picture:
    """Any format, any mode, both decoders."""

    def __init__(self) -> None:
        rng = Random(0)
        self._files = [_picture(rng, kind, mode) for kind, modes in _KINDS.items() for mode in modes for _ in range(3)]

    def draw(self, rng: Random) -> tuple[bytes, int]:
        content = self._files[rng.randrange(len(self._files))]
        if rng.random() < 0.7:
            content = other_bytes(rng, content)
        return content, rng.choice((1, 2, 4, 8))

    def check(self, case: tuple[bytes, int]) -> bool:
        fast, accepted = reader.simplejpeg, True
        for decoder in (fast, None):
            reader.simplejpeg = decoder
            try:
                picture = open_picture(case[0])
                pixels, denominator = picture.pixels(case[1])
                assert denominator in (1, case[1]) and pixels.dtype == np.uint8
                assert pixels.shape == (*(-(-side // denominator) for side in picture.size), 3)
            except BadSampleError as error:
                assert str(error).strip() and "\n" not in str(error)
                accepted = False
            finally:
                reader.simplejpeg = fast
        return accepted


class IndexFile:
    """The index that lies beside the pictures, which came with them and may be anyone's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "data"
        pack(self._folder / "n01.tar", {"1.jpg": b"inside", "2.jpg": b"inside"})
        pack(self._folder / "n02.tar", {"3.jpg": b"inside"})
        (folder / "outside.jpg").write_bytes(b"outside")
        shutil.copy(self._folder / "n01.tar", folder / "outside.tar")
        open_pictures(self._folder)
        self._home = self._folder / ".sam_ds_index"
        self._header = json.loads((self._home / "pictures.json").read_text())
        self._table = (self._home / self._header["table"]).read_bytes()

    def draw(self, rng: Random) -> tuple[bytes, bytes]:
        table = other_bytes(rng, self._table) if rng.random() < 0.6 else self._table
        return json_case(rng, [self._header]), table

    def check(self, case: tuple[bytes, bytes]) -> bool:
        (self._home / self._header["table"]).write_bytes(case[1])
        (self._home / "pictures.json").write_bytes(case[0])
        try:
            index = open_pictures(self._folder)
        except UserError as error:
            assert str(error)
            return False
        assert 0 <= index.unlabelled() <= len(index)
        return sum(_reads(index, sample) for sample in range(min(len(index), 4))) == min(len(index), 4)


def _reads(index: PictureIndex, sample: int) -> bool:
    try:
        content, label = PictureReader(index).read(sample)
    except BadSampleError as error:
        assert str(error)
        return False
    assert content != b"outside" and NO_CLASS <= label < len(index.classes)
    return True
