"""A bad picture is named with its reason, another takes its place, and too many of them end the run."""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import replace
from errno import EMFILE, ENFILE, ENOMEM
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sam_ds.config.errors import UserError
from sam_ds.config.schema import DataConfig, EvalConfig, Recipe
from sam_ds.data import reader
from sam_ds.data.index import open_index
from sam_ds.data.loader import EvalLoader, TrainLoader
from sam_ds.data.reader import BadSampleError, decode
from sam_ds.data.sampler import Share

DATA = DataConfig(workers=0, max_masks=4)
SIDE = 48


def _cut_jpeg(folder: Path, picture: int) -> None:
    path = folder / f"sa_{picture}.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _change(folder: Path, picture: int, how) -> None:
    path = folder / f"sa_{picture}.json"
    info = json.loads(path.read_text())
    how(info)
    path.write_text(json.dumps(info))


def _no_masks(folder: Path, picture: int) -> None:
    _change(folder, picture, lambda info: info.update(annotations=[]))


def _wrong_rle(folder: Path, picture: int) -> None:
    def shorten(info: dict) -> None:
        for annotation in info["annotations"]:
            annotation["segmentation"]["counts"] = annotation["segmentation"]["counts"][:-1]

    _change(folder, picture, shorten)


def _wrong_size(folder: Path, picture: int) -> None:
    _change(folder, picture, lambda info: info["image"].update(width=17))


def _all_too_large(folder: Path, picture: int) -> None:
    _change(folder, picture, lambda info: [a.update(area=10**6) for a in info["annotations"]])


def _no_boxes(folder: Path, picture: int) -> None:
    _change(folder, picture, lambda info: [a.pop("bbox") for a in info["annotations"]])


def _not_json(folder: Path, picture: int) -> None:
    (folder / f"sa_{picture}.json").write_text('{"image": {')


def _other_json(folder: Path, picture: int) -> None:
    (folder / f"sa_{picture}.json").write_text("[1, 2]")


def _write_json(folder: Path, picture: int, content: str) -> None:
    (folder / f"sa_{picture}.json").write_text(content)


def _deep_json(folder: Path, picture: int) -> None:
    _write_json(folder, picture, "[" * 100_000)


def _endless_size(folder: Path, picture: int) -> None:
    _write_json(folder, picture, '{"image": {"height": 1e400, "width": 96}, "annotations": []}')


def _huge_size(folder: Path, picture: int) -> None:
    _change(folder, picture, lambda info: info["image"].update(height=10**400))


def _huge_area(folder: Path, picture: int) -> None:
    _change(folder, picture, lambda info: info["annotations"][0].update(area=10**400))


def _endless_boxes(folder: Path, picture: int) -> None:
    _change(folder, picture, lambda info: [a["bbox"].__setitem__(0, float("inf")) for a in info["annotations"]])


def _ragged_counts(folder: Path, picture: int) -> None:
    _change(folder, picture, lambda info: [a["segmentation"].update(counts=[[1, 2], [3]]) for a in info["annotations"]])


def _huge_header(folder: Path, picture: int) -> None:
    path = folder / f"sa_{picture}.jpg"
    path.write_bytes(_with_size(path.read_bytes(), 65500))


def _with_size(jpeg: bytes, side: int) -> bytes:
    """The header says ``side`` for both sides."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + side.to_bytes(2, "big") * 2 + jpeg[at + 4 :]


def _gone(folder: Path, picture: int) -> None:
    (folder / f"sa_{picture}.jpg").unlink()


def _empty_jpeg(folder: Path, picture: int) -> None:
    (folder / f"sa_{picture}.jpg").write_bytes(b"")


FAULTS = {
    _cut_jpeg: "JPEG is damaged",
    _empty_jpeg: "JPEG is damaged",
    _no_masks: "no masks",
    _wrong_rle: "RLE of its mask .* another number of pixels|RLE of its mask .* breaks off",
    _wrong_size: "is for a picture of .*, not .*17",
    _all_too_large: "passes the filters",
    _no_boxes: "annotations are not as SA-1B's: KeyError 'bbox'",
    _not_json: "JSON is damaged",
    _other_json: "JSON is not as SA-1B's",
    _deep_json: "JSON is damaged: .*recursion",
    _endless_size: "JSON is not as SA-1B's: OverflowError .*infinity",
    _huge_size: "JSON is not as SA-1B's: size",
    _huge_area: "annotations are not as SA-1B's: OverflowError",
    _endless_boxes: "passes the filters",
    _ragged_counts: "RLE of its mask .* neither a string nor a list of whole numbers",
    _huge_header: "JPEG is 65500x65500, its annotation says|JPEG is damaged: .*exceeds limit",
    _gone: "cannot be read: No such file",
}


def _name(value: object) -> str:
    return getattr(value, "__name__", str(value)).lstrip("_")


def _loader(index, quarantine: Path | None, data: DataConfig = DATA) -> TrainLoader:
    return TrainLoader(index, Recipe("t", data=data), SIDE, Share(4, 3, 0, 1), quarantine)


@pytest.mark.parametrize(("fault", "workers"), [*((fault, 0) for fault in FAULTS), (_cut_jpeg, 2)], ids=_name)
def test_substituted_and_written_down(loose: Path, tmp_path: Path, fault, workers: int) -> None:
    index = open_index(loose)
    fault(loose, 7)
    bad = next(i for i in range(len(index)) if index.name(i).endswith("/sa_7.jpg"))
    record = tmp_path / "run" / "quarantine.jsonl"
    steps = list(islice(_loader(index, record, replace(DATA, workers=workers)).steps(0), 3))  # three epochs
    samples = [int(s) for micros in steps for b in micros for s in b.sample_ids]
    positions = [int(p) for micros in steps for b in micros for p in b.positions]
    assert bad not in samples and positions == list(range(36))
    (line,) = record.read_text().splitlines()  # once, though met in every epoch
    entry = json.loads(line)
    assert entry["sample"] == bad and entry["file"] == index.name(bad)
    assert re.search(FAULTS[fault], entry["reason"])
    again = list(islice(_loader(index, None).steps(0), 3))
    assert samples == [int(s) for micros in again for b in micros for s in b.sample_ids]


def test_too_many_end_the_run(loose: Path) -> None:
    index = open_index(loose)
    for picture in range(1, 12):
        _no_masks(loose, picture)
    with pytest.raises(UserError, match=r"11 of the first .* are bad, more than data.bad_budget=0.01|in a row are bad"):
        list(islice(_loader(index, None).steps(0), 4))


def test_budget_may_be_large(loose: Path) -> None:
    index = open_index(loose)
    for picture in range(1, 12):
        _no_masks(loose, picture)
    loader = TrainLoader(index, Recipe("t", seed=3, data=replace(DATA, bad_budget=1.0)), SIDE, Share(1, 1, 0, 1), None)
    with pytest.raises(UserError, match=r"16 pictures in a row are bad; the last: .*it has no masks"):
        list(islice(loader.steps(0), 200))


def test_all_bad(loose: Path) -> None:
    index = open_index(loose)
    for picture in range(1, 13):
        _cut_jpeg(loose, picture)
    for workers in (0, 1):
        with pytest.raises(UserError, match="JPEG is damaged") as caught:
            next(_loader(index, None, replace(DATA, workers=workers)).steps(0))
        assert "\n" not in str(caught.value)


def test_evaluation_leaves_it_out(loose: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = open_index(loose)
    _cut_jpeg(loose, 7)
    loader = EvalLoader(index, DATA, SIDE, EvalConfig(batch=5), 0, 1)
    batches = list(loader)
    assert [len(b) for b in batches] == [5, 5, 2]
    assert [b.file for b in loader.bad] == [f"{loose.resolve()}/sa_7.jpg"]
    assert "left out of the evaluation" in caplog.text
    with_masks = [int(s) for b in batches for s in b.sample_ids[b.picture.unique()]]
    assert len(with_masks) == 11


def _jpeg(mode: str, size: tuple[int, int] = (30, 20)) -> bytes:
    colors = {"RGB": (200, 40, 90), "L": 120, "CMYK": (10, 180, 90, 20)}
    out = io.BytesIO()
    Image.new(mode, size, colors[mode]).save(out, "JPEG", quality=95)
    return out.getvalue()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("denominator", [1, 2, 4])
def test_colour_spaces(mode: str, denominator: int, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(reader, "simplejpeg", None)
    elif reader.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    pixels = decode(_jpeg(mode), (20, 30), denominator)
    assert pixels.shape == (20 // denominator, -(-30 // denominator), 3) and pixels.dtype == np.uint8
    with Image.open(io.BytesIO(_jpeg(mode))) as picture:
        expected = np.array(picture.convert("RGB"))[5, 5].astype(int)
    assert np.abs(pixels.astype(int) - expected).max() <= 3


def test_both_decoders_agree(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    path = sorted((data_dir / "photos" / "val").glob("*.jpg"))[0]
    with Image.open(path) as picture:
        size = picture.height, picture.width
    fast = [decode(path.read_bytes(), size, d).astype(int) for d in (1, 2, 4, 8)]
    monkeypatch.setattr(reader, "simplejpeg", None)
    for denominator, pixels in zip((1, 2, 4, 8), fast, strict=True):
        other = decode(path.read_bytes(), size, denominator).astype(int)
        assert np.abs(pixels - other).mean() < 1.0


@pytest.mark.parametrize("fast", [True, False])
def test_damaged_jpegs(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(reader, "simplejpeg", None)
    whole = _jpeg("RGB", (300, 200))
    for content in (whole[: len(whole) // 2], whole[:20], b"not a picture", b""):
        with pytest.raises(BadSampleError, match="JPEG is damaged"):
            decode(content, (200, 300))
    with pytest.raises(BadSampleError, match=FAULTS[_huge_header]):
        decode(_with_size(whole, 65500), (200, 300))
    with pytest.raises(BadSampleError, match="its JPEG is 300x200, its annotation says 200x300"):
        decode(whole, (300, 200))


def test_tar_that_shrank(loose: Path, tmp_path: Path) -> None:
    import tarfile

    folder = tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for path in sorted(loose.glob("sa_*")):
            tar.add(path, f"./{path.name}")
    index = open_index(folder)
    with open(folder / "a.tar", "r+b") as file:
        file.truncate(int(index[len(index) - 1]["jpg_offset"]) + 10)
    with pytest.raises(BadSampleError, match=r"^its tar ends within it"):
        reader.Reader(index).read(len(index) - 1)
    assert torch.is_tensor(next(_loader(index, None).steps(0))[0].images)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("number", "way_out"), [(EMFILE, "ulimit"), (ENFILE, "file-max"), (ENOMEM, "data.workers")])
def test_machine_at_its_limit(
    loose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, way_out: str, workers: int
) -> None:
    """It is not the picture that is bad: nothing is written down, and the run ends with a way out."""

    def read_bytes(path: Path) -> bytes:
        raise OSError(number, os.strerror(number), path)

    index = open_index(loose)
    record, data = tmp_path / "quarantine.jsonl", replace(DATA, workers=workers, bad_budget=1.0)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    for batches in (_loader(index, record, data).steps(0), EvalLoader(index, data, SIDE, EvalConfig(), 0, 1)):
        with pytest.raises(UserError, match=rf"sa_\d+\.jpg cannot be read: .*{way_out}") as caught:
            next(iter(batches))
        assert "\n" not in str(caught.value)
    assert not record.exists()
