"""Whole pictures a second on one core: JPEG files to a batch of random resized crops, ours beside torchvision's way.

The pictures are photographs cut to ImageNet's usual 500x375 and to SA-1B's 2250x1500 (enlarged, with grain), from
SAM_DS_DATA where it names a folder with photos, else drawn scenes; ImageNet's files weigh some 110 kB, SA-1B's 1 MB.
Both sides read the same files, cut the same boxes, mirror the same pictures, and end with a uint8 batch at 224.

  ours        the training path: simplejpeg, at a smaller scale where the box is large enough; torch's bicubic
  baseline    what torchvision's ImageFolder, RandomResizedCrop(bicubic), RandomHorizontalFlip and PILToTensor do:
              Pillow opens, converts to RGB, cuts and resizes
  decode      simplejpeg alone, at full size: what no way with all of its pixels can go below

  python benchmarks/bench_pictures.py [--pictures 32] [--repeats 9] [--no-save]
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from bench_data import medians
from common import RESULTS, ROOT, append_rows
from PIL import Image

from sam_ds.config.schema import DataConfig, Recipe, TransformConfig
from sam_ds.data.crops import random_resized_crop
from sam_ds.data.imagenet import open_pictures
from sam_ds.data.picture_loader import PictureTrainLoader
from sam_ds.data.sampler import Sampler, Share

SIDE = 224
TRANSFORMS = TransformConfig(flip=0.5, area=(0.08, 1.0), aspect=(3 / 4, 4 / 3))
# Of a kind of picture: width, height, bytes of a file, and how many there are of it to one of the first kind.
KINDS = {"ImageNet": (500, 375, 110_000, 1.0), "SA-1B": (2250, 1500, 980_000, 0.25)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=32, help="of ImageNet's kind; a quarter of SA-1B's")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds; the medians are reported")
    parser.add_argument("--no-save", action="store_true", help="do not add to benchmarks/results/pictures.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for kind, (*_, part) in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            source = write_pictures(Path(folder), kind, max(1, round(args.pictures * part)))
            report(kind, source, Path(folder), args.repeats, save=not args.no_save)


def report(kind: str, source: str, folder: Path, repeats: int, save: bool) -> None:
    files = sorted(folder.glob("*.jpg"))
    times = measure(folder, files, repeats)
    width, height, *_ = KINDS[kind]
    weight = statistics.median(path.stat().st_size for path in files) / 1000
    print(f"{kind}: {width}x{height}, {weight:.0f} kB ({source}), one core")
    rows = []
    for case, seconds in times.items():
        rate, ratio = len(files) / seconds, times["baseline"] / seconds
        print(f"  {case:10} {1e3 / rate:7.2f} ms  {rate:7.1f} pictures/s  {ratio:5.2f}x the baseline")
        rows.append(
            {
                "kind": kind,
                "case": case,
                "source": source,
                "kilobytes": round(weight),
                "ms": round(1e3 / rate, 2),
                "pictures_per_second": round(rate, 1),
                "times_baseline": round(ratio, 2),
            }
        )
    if save:
        append_rows(RESULTS / "pictures.csv", rows)


def measure(folder: Path, files: list[Path], repeats: int) -> dict[str, float]:
    """Seconds of each case for all the pictures."""
    index, positions = open_pictures(folder), list(range(len(files)))
    recipe = Recipe("bench", data=DataConfig(workers=0, transforms=TRANSFORMS))
    loader = PictureTrainLoader(index, recipe, SIDE, Share(len(files), 1, 0, 1), None)
    sampler = Sampler(len(index), recipe.seed)
    samples = [sampler.sample(position) for position in positions]
    paths = [Path(index.name(sample)) for sample in samples]
    own = loader._make(positions).batch
    assert own is not None
    off = (own.images.int() - baseline(paths, samples).int()).abs().float().mean()
    assert off < 5, f"the ways differ by {off:.1f} of 255 in the mean"
    return medians(
        {
            "ours": lambda: loader._make(positions),
            "baseline": lambda: baseline(paths, samples),
            "decode": lambda: [simplejpeg.decode_jpeg(path.read_bytes(), "RGB") for path in paths],
        },
        repeats,
    )


def baseline(paths: list[Path], samples: list[int]) -> torch.Tensor:
    """uint8 [B, 3, 224, 224]."""
    views = []
    for path, sample in zip(paths, samples, strict=True):
        rng = np.random.default_rng((0, 0, sample))
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        box = random_resized_crop(rng, TRANSFORMS, (picture.height, picture.width))
        view = picture.crop(box).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        if rng.random() < TRANSFORMS.flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        views.append(torch.from_numpy(np.array(view)).permute(2, 0, 1).contiguous())
    return torch.stack(views)


def write_pictures(folder: Path, kind: str, count: int) -> str:
    """``count`` JPEGs of a kind, alike in every run. Returns where they come from."""
    width, height, weight, _ = KINDS[kind]
    data = Path(os.environ.get("SAM_DS_DATA", ROOT / ".." / "shared" / "data"))
    photos = sorted(data.glob("photos/*/*.jpg"))
    rng = np.random.default_rng(0)
    pictures = []
    for place in range(count):
        source = Image.open(photos[place * len(photos) // count]).convert("RGB") if photos else _scene(place)
        pixels = np.asarray(source.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
        if kind != "ImageNet":
            pixels += rng.normal(0, 3.5, (height, width, 1))
        pictures.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    for place, content in enumerate(_encoded(pictures, weight)):
        (folder / f"{place:04}.jpg").write_bytes(content)
    return "photographs" if photos else "drawn scenes"


def _scene(place: int) -> Image.Image:
    from sam_ds.data.scenes import Painter

    return Image.fromarray(Painter().paint(np.random.default_rng(place), (375, 500), 40).pixels)


def _encoded(pictures: list[Image.Image], weight: int) -> list[bytes]:
    """At the best quality whose files weigh no more in the median."""
    for quality in range(98, 50, -2):
        files = []
        for picture in pictures:
            out = io.BytesIO()
            picture.save(out, "JPEG", quality=quality)
            files.append(out.getvalue())
        if statistics.median(map(len, files)) <= weight:
            break
    return files


if __name__ == "__main__":
    main()
