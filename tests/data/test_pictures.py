"""A picture of any kind becomes upright RGB, or is left out with a reason; a view of it is what the rule says."""

from __future__ import annotations

import io
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from sam_ds.config.schema import DataConfig, EvalConfig, Recipe, TransformConfig
from sam_ds.data import reader
from sam_ds.data.crops import evaluated, random_resized_crop
from sam_ds.data.files import BadSampleError
from sam_ds.data.imagenet import open_pictures
from sam_ds.data.picture_loader import PictureEvalLoader, PictureTrainLoader
from sam_ds.data.pictures import open_picture
from sam_ds.data.sampler import Share
from tests.data.photos import encode, jpeg, write

SIDES = (24, 40)  # height, width


def _smooth(channels: int = 3) -> np.ndarray:
    """uint8 [h, w, channels]; every corner is another."""
    rng = np.random.default_rng(0)
    small = rng.integers(20, 236, (3, 4, channels), np.uint8)
    grown = [Image.fromarray(small[..., c]).resize(SIDES[::-1], Image.Resampling.BICUBIC) for c in range(channels)]
    return np.stack([np.asarray(band) for band in grown], axis=2)


def _pixels(content: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = open_picture(content)
        pixels, denominator = picture.pixels()
    assert pixels.shape == (*picture.size, 3) and pixels.dtype == np.uint8 and denominator == 1
    assert pixels.flags.c_contiguous
    return pixels


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG"])
def test_formats(kind: str) -> None:
    """Told by their content: nobody looks at the name."""
    exact = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    found = _pixels(encode(Image.fromarray(_smooth()), kind, **exact)).astype(int)
    assert np.abs(found - _smooth()).max() <= {"GIF": 120, "JPEG": 4}.get(kind, 0)
    assert np.abs(found - _smooth()).mean() < 6


def test_grey() -> None:
    grey = _smooth(1)[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2).astype(int)
    for kind in ("PNG", "JPEG"):
        assert np.abs(_pixels(encode(Image.fromarray(grey), kind)).astype(int) - expected).max() <= 6
    bits = Image.fromarray(grey).convert("1")
    assert np.array_equal(_pixels(encode(bits, "PNG")), np.asarray(bits.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(kind: str) -> None:
    """Pillow's own conversion cuts everything above 255 off."""
    grey = np.linspace(0, 65535, SIDES[0] * SIDES[1]).astype(np.uint16).reshape(SIDES)
    expected = np.repeat((grey / 257).round()[..., None], 3, axis=2)
    assert np.abs(_pixels(encode(Image.fromarray(grey), kind)) - expected).max() <= 1


def test_palette() -> None:
    picture = Image.fromarray(_smooth()).quantize(64)
    assert np.array_equal(_pixels(encode(picture, "PNG")), np.asarray(picture.convert("RGB")))


def test_the_transparent_is_white() -> None:
    colors = _smooth(4)
    colors[..., 3] = 255
    colors[:8, :, 3] = 0
    colors[8:12, :, 3] = 51
    expected = np.where(colors[..., 3:] == 255, colors[..., :3], 255.0)
    expected[8:12] = colors[8:12, :, :3] * 0.2 + 255 * 0.8
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert np.abs(_pixels(encode(Image.fromarray(colors), kind, **options)) - expected).max() <= 1
    palette = Image.fromarray(np.tile(np.arange(2, dtype=np.uint8), (4, 3))).convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    for kind in ("PNG", "GIF"):
        found = _pixels(encode(palette, kind, transparency=0))
        assert (found[:, ::2] == 255).all() and (found[:, 1::2] == (200, 100, 50)).all()


def test_cmyk() -> None:
    cmyk = Image.fromarray(_smooth()).convert("CMYK")
    found = _pixels(encode(cmyk, "JPEG", quality=100, subsampling=0)).astype(int)
    assert np.abs(found - _smooth()).max() <= 8


def test_animations_show_their_first_picture() -> None:
    frames = [Image.new("RGB", SIDES[::-1], color) for color in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        assert (
            _pixels(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)) == (255, 0, 0)
        ).all()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(reader, "simplejpeg", None)
    elif reader.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    stored, exif = Image.fromarray(_smooth()), Image.Exif()
    exif[0x0112] = orientation
    for kind, options in (("JPEG", {"quality": 100, "subsampling": 0}), ("PNG", {}), ("TIFF", {}), ("WEBP", {})):
        content = encode(stored, kind, exif=exif, **options)
        with Image.open(io.BytesIO(content)) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
        assert upright.size == (SIDES if orientation > 4 else SIDES[::-1])
        assert np.abs(_pixels(content).astype(int) - np.asarray(upright)).max() <= 1, kind
    content = encode(stored.resize((80, 48)), "JPEG", exif=exif, quality=100)
    pixels, denominator = open_picture(content).pixels(2)
    assert pixels.shape[:2] == tuple(-(-side // denominator) for side in open_picture(content).size)
    assert np.abs(pixels.astype(int) - _pixels(content)[::denominator, ::denominator]).mean() < 8
    assert denominator == (2 if fast else 1)


def test_a_tag_that_there_is_no_memory_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(Image.fromarray(_smooth()), "JPEG", exif=exif)

    def full(*args: object, **options: object) -> None:
        raise MemoryError("full")

    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(BadSampleError, match="it does not fit into memory: full"):
        open_picture(content)


def test_a_tag_that_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without simplejpeg: a picture is not turned here and refused there."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(Image.fromarray(_smooth()), "JPEG", exif=exif)

    def broken(*args: object) -> None:
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    for module in (reader.simplejpeg, None):
        monkeypatch.setattr(reader, "simplejpeg", module)
        with pytest.raises(BadSampleError, match="the picture is damaged: not a TIFF file"):
            open_picture(content)


def test_tags_that_say_nothing() -> None:
    for value in (0, 9, 77):
        exif = Image.Exif()
        exif[0x0112] = value
        assert _pixels(encode(Image.fromarray(_smooth()), "JPEG", exif=exif)).shape[:2] == SIDES
    content = encode(Image.fromarray(_smooth()), "JPEG", exif=Image.Exif())
    at = content.index(b"\xff\xdb")
    broken = content[:at] + b"\xff\xe1\x00\x0eExif\0\0junk!!" + content[at:]
    assert _pixels(broken).shape[:2] == SIDES


def test_bytes_too_many_are_borne() -> None:
    content = jpeg(1)
    for odd in (content + b"more", content[:-2] + bytes(100) + content[-2:]):
        assert np.array_equal(_pixels(odd), _pixels(content))


DAMAGED = {
    "empty": (b"", "the file is empty"),
    "a page": (b"<!DOCTYPE html><html></html>", r"the file is no picture of a known format \(JPEG, PNG, WEBP"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "the file is no picture of a known format"),
    "half a JPEG": (jpeg(1, (200, 300))[:4000], "the picture is damaged: image file is truncated"),
    "a JPEG's start": (jpeg(1)[:20], "the picture is damaged|the file is no picture"),
    "half a PNG": (encode(Image.fromarray(_smooth()), "PNG")[:700], "the picture is damaged"),
    "half a TIFF": (encode(Image.fromarray(_smooth()), "TIFF")[:700], "the picture is damaged|no picture"),
    "floats": (encode(Image.fromarray(np.ones(SIDES, np.float32)), "TIFF"), r"numbers of 32 bits \(F\)"),
}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_picture(name: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(reader, "simplejpeg", None)
    content, reason = DAMAGED[name]
    with pytest.raises(BadSampleError, match=reason) as caught:
        open_picture(content).pixels()
    assert "\n" not in str(caught.value) and "0x" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bombs(kind: str) -> None:
    content = encode(Image.fromarray(_smooth()), kind)
    if kind == "JPEG":
        at = content.index(b"\xff\xc0") + 5
        content = content[:at] + (13400).to_bytes(2, "big") * 2 + content[at + 4 :]
    else:
        header = b"IHDR" + (13400).to_bytes(4, "big") * 2 + content[24:29]
        content = content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]
    with pytest.raises(BadSampleError, match=r"it is too large: 13400x13400 pixels|exceeds limit"):
        open_picture(content).pixels()


def test_a_few_bytes_do_not_take_the_memory() -> None:
    small, large = (encode(Image.new("1", (side, side)), "TIFF", compression="group4") for side in (2000, 13000))
    assert _pixels(small).shape == (2000, 2000, 3)
    with pytest.raises(
        BadSampleError, match=rf"^the picture is damaged: {len(large)} bytes say that they are 13000x13"
    ):
        open_picture(large)


CROPS = TransformConfig(area=(0.08, 1.0), aspect=(0.75, 4 / 3))


@pytest.mark.parametrize("size", [(375, 500), (20, 500), (500, 20), (1, 1), (1, 9000)])
def test_crops_follow_the_rule(size: tuple[int, int]) -> None:
    boxes = [random_resized_crop(np.random.default_rng(i), CROPS, size) for i in range(400)]
    assert all(0 <= b.left < b.right <= size[1] and 0 <= b.top < b.bottom <= size[0] for b in boxes)
    if size == (375, 500):
        areas = np.array([(b.right - b.left) * (b.bottom - b.top) for b in boxes]) / (375 * 500)
        aspects = np.log([(b.right - b.left) / (b.bottom - b.top) for b in boxes])
        assert 0.08 - 0.005 <= areas.min() < 0.1 and 0.9 < areas.max() <= 1
        assert abs(aspects).max() <= np.log(4 / 3) + 0.01 and -0.03 < aspects.mean() < 0.08
        assert abs((np.abs(aspects) < np.log(4 / 3) / 2).mean() - 0.5) < 0.08  # uniform in the logarithm
        assert {b.left == 0 for b in boxes} == {b.top == 0 for b in boxes} == {True, False}
    if 20 in size:  # nothing fits: the largest in the middle
        long = round(20 * 4 / 3)
        assert {(b.right - b.left, b.bottom - b.top) for b in boxes} == {(long, 20) if size[0] == 20 else (20, long)}
        assert all(abs(b.left + b.right - size[1]) <= 1 and abs(b.top + b.bottom - size[0]) <= 1 for b in boxes)


def test_by_default_the_middle_is_shown() -> None:
    for size, box in [((30, 50), (10, 0, 40, 30)), ((50, 31), (0, 9, 31, 40)), ((7, 7), (0, 0, 7, 7))]:
        assert random_resized_crop(np.random.default_rng(0), TransformConfig(), size) == box


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (256, 256), (33, 9000)])
def test_evaluation_looks_at_the_middle(size: tuple[int, int]) -> None:
    seen, resized, middle = evaluated(size, 224)
    assert min(resized) == 256 and max(resized) <= 8 * 256
    assert (middle.right - middle.left, middle.bottom - middle.top) == (224, 224)
    assert abs(middle.left + middle.right - resized[1]) <= 1 and abs(middle.top + middle.bottom - resized[0]) <= 1
    assert seen == (0, 0, size[1], size[0]) if size != (33, 9000) else seen.right - seen.left == 8 * 33


def _shown(folder, side: int, exact: bool) -> torch.Tensor:
    (batch,) = PictureEvalLoader(open_pictures(folder), DataConfig(workers=0, exact=exact), side, EvalConfig(), 0, 1)
    return batch.images[0]


@pytest.mark.parametrize("size", [(300, 400), (401, 300), (90, 100)])
def test_evaluation_is_pillows_bicubic(tmp_path, size: tuple[int, int]) -> None:
    """As torchvision's Resize and CenterCrop do it."""
    content = jpeg(3, size)
    shown = _shown(write(tmp_path, {"1.jpg": content}), 112, exact=True)
    with Image.open(io.BytesIO(content)) as picture:
        scale = 128 / min(picture.size)
        resized = picture.resize([int(side * scale) for side in picture.size], Image.Resampling.BICUBIC)
        left, top = (resized.width - 112) // 2, (resized.height - 112) // 2
        expected = np.asarray(resized.crop((left, top, left + 112, top + 112))).astype(int)
    assert np.abs(shown.permute(1, 2, 0).numpy() - expected).max() <= 4
    scaled = _shown(tmp_path, 112, exact=False)
    assert (scaled.int() - shown.int()).abs().float().mean() < 3


def test_a_training_view_is_its_crop(tmp_path) -> None:
    """The whole box, resized by Pillow, mirrored or not."""
    content = jpeg(3, (60, 80))
    index = open_pictures(write(tmp_path, {"1.png": encode(Image.open(io.BytesIO(content)), "PNG")}))
    data = DataConfig(workers=0, transforms=TransformConfig(flip=0.5, area=(0.3, 1.0), aspect=(0.75, 4 / 3)))
    loader = PictureTrainLoader(index, Recipe("t", seed=2, data=data), 32, Share(8, 1, 0, 1), None)
    (batch,) = next(loader.steps(0))
    mirrored = set()
    with Image.open(io.BytesIO(content)) as picture:
        for position, shown in enumerate(batch.images):
            box = random_resized_crop(np.random.default_rng((2, position, 0)), data.transforms, (60, 80))
            expected = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC, box=box)).astype(int)
            off = [np.abs(way - shown.permute(1, 2, 0).numpy()).max() for way in (expected, expected[:, ::-1])]
            assert min(off) <= 2 < max(off)
            mirrored.add(off.index(min(off)))
    assert mirrored == {0, 1}
