"""Pictures a second on one core: JPEG and JSON bytes to what the trainer takes, ours beside pycocotools and Pillow.

The picture is of SA-1B's kind: 2250x1500 with 100 masks, of which all or 64 drawn at random are trained. Masks are
contours of real objects (photographs, nuclei) enlarged where SAM_DS_DATA names a folder with them, else drawn scenes.
Sizes and grain are set so that JPEG and JSON together weigh about what a picture of SA-1B does (11.2 thousand to a tar
of 11 GB).

  ours        the training path: JSON, filters, draw of the masks, runs of the drawn ones, DCT-scaled decode, resize to
              1024; masks stay runs, the device draws them (``rasterize`` is timed apart)
  baseline    a careful one: JSON, pycocotools decodes the drawn masks one by one, each is resized (nearest) at once;
              Pillow decodes with draft and resizes (bilinear)
  floor       simplejpeg's smallest grey decode: the entropy decoding that nothing with this JPEG can go below

  python benchmarks/bench_data.py [--repeats 15] [--no-save]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from common import RESULTS, ROOT, append_rows
from PIL import Image
from pycocotools import mask as coco_mask

from sam_ds.config.schema import DataConfig
from sam_ds.data.index import open_index
from sam_ds.data.samples import SampleMaker, collate
from sam_ds.ops.rasterize import rasterize
from sam_ds.types import SegmentBatch

HEIGHT, WIDTH, SIDE, NUM_MASKS = 1500, 2250, 1024, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds; the medians are reported")
    parser.add_argument("--no-save", action="store_true", help="do not add to benchmarks/results/data.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = write_picture(Path(folder))
        for drawn in (64, NUM_MASKS):
            report(measure(Path(folder), drawn, args.repeats), drawn, source, save=not args.no_save)


def measure(folder: Path, drawn: int, repeats: int) -> dict[str, float]:
    """Seconds of each case."""
    maker = SampleMaker(open_index(folder), DataConfig(max_masks=drawn), SIDE, seed=0)
    batch = ours(maker)
    jpeg, info = (folder / "sa_1.jpg").read_bytes(), (folder / "sa_1.json").read_bytes()
    to_source = batch.to_source[batch.picture]
    return medians(
        {
            "ours": lambda: ours(maker),
            "baseline": lambda: baseline(jpeg, info, drawn),
            "floor": lambda: simplejpeg.decode_jpeg(jpeg, "GRAY", min_factor=8),
            "rasterize": lambda: rasterize(batch.runs, to_source, (SIDE, SIDE)),
        },
        repeats,
    )


def medians(cases: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each case; the cases take turns, so a busy machine is busy for all of them."""
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, case in cases.items():
            start = time.process_time()
            case()
            if turn:  # the first one warms up
                taken[name].append(time.process_time() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def report(times: dict[str, float], drawn: int, source: str, save: bool) -> None:
    print(f"{WIDTH}x{HEIGHT}, {NUM_MASKS} masks ({source}), {drawn} drawn, one core")
    for name, seconds in times.items():
        print(f"  {name:10} {seconds * 1e3:7.2f} ms  {1 / seconds:7.1f} pictures/s")
    speedup, of_floor = times["baseline"] / times["ours"], times["floor"] / times["ours"]
    print(f"  ours is {speedup:.1f}x the baseline and reaches {of_floor:.0%} of the decode floor")
    if save:
        rows = [
            {
                "case": name,
                "masks": source,
                "drawn": drawn,
                "ms": round(seconds * 1e3, 2),
                "pictures_per_second": round(1 / seconds, 1),
                "times_baseline": round(times["baseline"] / seconds, 1),
                "part_of_floor": round(times["floor"] / seconds, 2),
            }
            for name, seconds in times.items()
        ]
        append_rows(RESULTS / "data.csv", rows)


def ours(maker: SampleMaker) -> SegmentBatch:
    """A batch of one picture, as a loader's process makes it."""
    images = maker.black(1)
    sample, bad = maker.for_training(0, images[0])
    assert sample is not None and not bad, bad
    return collate(images, [sample])


def baseline(jpeg: bytes, info: bytes, drawn: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Picture uint8 [3, 683, 1024] and masks uint8 [drawn, 683, 1024]."""
    scale = SIDE / WIDTH
    height, width = round(HEIGHT * scale), SIDE
    annotations = json.loads(info)["annotations"]
    some = np.random.default_rng(0).permutation(len(annotations))[:drawn]
    rows = ((np.arange(height) + 0.5) / scale).astype(int)
    columns = ((np.arange(width) + 0.5) / scale).astype(int)
    masks = np.empty((drawn, height, width), np.uint8)
    for place, chosen in enumerate(some):
        masks[place] = coco_mask.decode(annotations[chosen]["segmentation"])[rows[:, None], columns]
    with Image.open(io.BytesIO(jpeg)) as picture:
        picture.draft("RGB", (width, height))
        pixels = np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous(), torch.from_numpy(masks)


def write_picture(folder: Path) -> str:
    """sa_1.jpg and sa_1.json, alike in every run. Returns where the masks come from."""
    rng = np.random.default_rng(0)
    data = Path(os.environ.get("SAM_DS_DATA", ROOT / ".." / "shared" / "data"))
    shapes = _real_shapes(data) or _drawn_shapes()
    source = "real contours" if data.is_dir() else "drawn contours"
    sides = np.exp(rng.uniform(np.log(40), np.log(1800), NUM_MASKS))
    annotations = [_enlarged(rng, shapes[i % len(shapes)], side) for i, side in enumerate(sides)]
    pixels = _photo(rng, data)
    Image.fromarray(pixels).save(folder / "sa_1.jpg", quality=84)
    image = {"image_id": 1, "height": HEIGHT, "width": WIDTH, "file_name": "sa_1.jpg"}
    (folder / "sa_1.json").write_text(json.dumps({"image": image, "annotations": annotations}))
    return source


def _real_shapes(data: Path) -> list[np.ndarray]:
    """Masks cut to their boxes, bool [h, w], of at least 20 pixels a side."""
    shapes = []
    for path in sorted(data.glob("*/val/*.json")):
        for annotation in json.loads(path.read_text())["annotations"]:
            x, y, width, height = map(int, annotation["bbox"])
            if min(width, height) >= 20:
                shapes.append(coco_mask.decode(annotation["segmentation"])[y : y + height, x : x + width].astype(bool))
    return shapes


def _drawn_shapes() -> list[np.ndarray]:
    from sam_ds.data.scenes import Painter

    labels = Painter().paint(np.random.default_rng(0), (512, 512), 40).labels
    shapes = []
    for label in np.unique(labels)[1:]:
        rows, columns = np.nonzero(labels == label)
        shapes.append(labels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == label)
    return shapes


def _enlarged(rng: np.random.Generator, shape: np.ndarray, side: float) -> dict[str, Any]:
    """An annotation of a shape whose longer side is ``side``, somewhere in the picture."""
    scale = side / max(shape.shape)
    height, width = (
        max(1, min(limit, round(n * scale))) for n, limit in zip(shape.shape, (HEIGHT, WIDTH), strict=True)
    )
    large = np.asarray(Image.fromarray(shape).convert("L").resize((width, height), Image.Resampling.BICUBIC)) > 127
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    top, left = rng.integers(0, HEIGHT - height + 1), rng.integers(0, WIDTH - width + 1)
    mask[top : top + height, left : left + width] = large
    rle = coco_mask.encode(mask)
    return {
        "id": 0,
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()},
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": int(coco_mask.area(rle)),
        "predicted_iou": 0.95,
        "stability_score": 0.97,
        "crop_box": [0, 0, WIDTH, HEIGHT],
        "point_coords": [[float(left), float(top)]],
    }


def _photo(rng: np.random.Generator, data: Path) -> np.ndarray:
    """uint8 [1500, 2250, 3]: a photograph enlarged, with grain so that its JPEG weighs what SA-1B's do."""
    photos = sorted(data.glob("photos/val/*.jpg"))
    if photos:
        base = Image.open(photos[0]).convert("RGB")
    else:
        from sam_ds.data.scenes import Painter

        base = Image.fromarray(Painter().paint(rng, (400, 600), 20).pixels)
    pixels = np.asarray(base.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(np.float32)
    grain = rng.normal(0, 3.5, (HEIGHT, WIDTH, 1))
    return np.asarray((pixels + grain).clip(0, 255), np.uint8)


if __name__ == "__main__":
    main()
