"""How well masked patches are painted: who is counted, and what one colour brings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sam_ds.config.schema import MaeConfig
from sam_ds.evaluation.reconstruction import FlatPatches, Gallery, evaluate
from sam_ds.modeling.mae import Patches
from sam_ds.modeling.presets import VitConfig
from sam_ds.tasks.pretrain_mae import make_inputs
from sam_ds.types import PictureBatch

CPU = torch.device("cpu")
SIZES = VitConfig(dim=32, depth=2, num_heads=2, image_size=32, patch_size=8)


def batch(samples: list[int]) -> PictureBatch:
    """Noise, another for each sample; -1 fills up."""
    pictures = [
        torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(sample + 1))
        for sample in samples
    ]
    places = torch.tensor(samples)
    return PictureBatch(torch.stack(pictures), torch.full((len(samples),), -1), places, places)


def test_pictures_that_fill_up_a_batch_do_not_count(tmp_path: Path) -> None:
    patches = Patches(SIZES, MaeConfig())
    flat, gallery = FlatPatches(patches, normalize_pixels=True), Gallery(tmp_path / "pictures", 9)
    alone = evaluate(flat, [batch([0]), batch([1])], patches, 0, CPU)
    filled = evaluate(flat, [batch([0, -1]), batch([1, -1]), batch([-1, -1])], patches, 0, CPU, gallery)
    assert filled.count == 2 and filled.metrics() == pytest.approx(alone.metrics(), rel=1e-6)
    assert [path.name for path in gallery.paths] == ["00000000.png", "00000001.png"]


def painted(normalize_pixels: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised pictures, what they are with patches of one colour, and which pixels were masked: [2, 3, 32, 32]."""
    patches = Patches(SIZES, MaeConfig(normalize_pixels=normalize_pixels))
    inputs = make_inputs(batch([0, 1]), patches, seed=0)
    answer = FlatPatches(patches, normalize_pixels)(inputs.images, inputs.order, inputs.cells)
    return inputs.images, patches.painted(inputs.images, inputs.order, answer), patches.hidden(inputs.order)


def test_flat_patches_have_the_mean_colour_of_the_pixels_that_are_seen() -> None:
    images, answers, hidden = painted(normalize_pixels=False)
    for image, answer, gap in zip(images, answers, hidden, strict=True):
        for channel in range(3):
            seen = image[channel][~gap[channel]]
            assert_close(answer[channel][~gap[channel]], seen)
            assert_close(answer[channel][gap[channel]], seen.mean().expand(int(gap[channel].sum())))


def test_flat_patches_have_their_own_mean_where_pixels_are_standardised() -> None:
    images, answers, hidden = painted(normalize_pixels=True)
    cells = [pictures.unfold(2, 8, 8).unfold(3, 8, 8) for pictures in (images, answers, hidden)]  # [2, 3, 4, 4, 8, 8]
    own = cells[0].mean((1, 4, 5), keepdim=True).expand_as(cells[0])  # over the channels too, as MAE standardises
    assert_close(cells[1], torch.where(cells[2], own, cells[0]))
