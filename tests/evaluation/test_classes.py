"""How often a classifier is right, what it must beat, and what an encoder's features are worth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sam_ds.config.errors import UserError
from sam_ds.evaluation.classes import ClassSums, Gallery, MostFrequent, class_table, evaluate
from sam_ds.evaluation.probe import Features, by_linear_layer, by_neighbours, extract, probe
from sam_ds.modeling.presets import PRESETS, VitConfig
from sam_ds.modeling.sam import Sam
from sam_ds.types import PictureBatch

CPU = torch.device("cpu")


def batch(labels: list[int]) -> PictureBatch:
    places = torch.arange(len(labels))
    images = torch.randint(
        0, 256, (len(labels), 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    return PictureBatch(images, torch.tensor(labels), places, places)


def test_top_1_top_5_and_loss_by_hand() -> None:
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3]]).repeat(4, 1)
    sums = evaluate(lambda _: logits, [batch([0, 4, 5, -1])], CPU)
    expected = float(F.cross_entropy(logits[:3], torch.tensor([0, 4, 5])))
    assert sums.metrics() == pytest.approx({"top1": 1 / 3, "top5": 2 / 3, "loss": expected, "pictures": 3})


def test_sums_of_ranks_add_up() -> None:
    logits = torch.randn(6, 3)
    parts = [evaluate(lambda _, some=some: logits[some], [batch([0, 1, 2])], CPU) for some in (slice(3), slice(3, 6))]
    both = ClassSums.from_tensor(parts[0].to_tensor() + parts[1].to_tensor())
    assert both.count == 6 and both.top1 == parts[0].top1 + parts[1].top1
    with pytest.raises(UserError, match="no picture could be read"):
        ClassSums().metrics()


def test_the_baseline_names_the_most_frequent_class() -> None:
    counts = torch.tensor([1, 7, 2])
    found = evaluate(MostFrequent(counts), [batch([1] * 7 + [2] * 2 + [0])], CPU).metrics()
    assert found["top1"] == 0.7 and found["top5"] == 1.0
    chances = counts / 10
    assert found["loss"] == pytest.approx(float(-(chances * chances.log()).sum()), rel=1e-5)  # their own entropy


def test_pictures_are_drawn_below_their_class(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path / "pictures", 2, ["cat", "dog"])
    evaluate(lambda images: torch.tensor([[1.0, 0.0]]).repeat(len(images), 1), [batch([-1, 0, 1, 1])], CPU, gallery)
    assert [path.name for path in gallery.paths] == ["00000001.png", "00000002.png"]
    assert all(path.is_file() for path in gallery.paths)


def test_the_table_has_a_column_a_model() -> None:
    found = {"top1": 0.5, "top5": 1.0, "loss": 0.7, "pictures": 4.0}
    lines = class_table({"most frequent": found, "step 5": found}).splitlines()
    assert "most frequent" in lines[0] and lines[1].split() == ["top-1,", "%", "50.0", "50.0"]


def features(count: int, seed: int) -> Features:
    """Three clouds of points, of which the third lies between the others."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.tensor([[4.0, 0, 0], [0, 4, 0], [2, 2, 1]])
    return Features(centres[labels] + torch.randn(count, 3, generator=generator), labels)


def test_neighbours_vote_as_dino_has_them() -> None:
    train, val = features(90, 1), features(40, 2)
    right = 0
    for value, label in zip(*val, strict=True):
        cosines = F.cosine_similarity(train.values, value[None])
        nearest = cosines.argsort(descending=True)[:20]
        votes = [float((cosines[nearest] / 0.07).exp()[train.labels[nearest] == kind].sum()) for kind in range(3)]
        right += votes.index(max(votes)) == int(label)
    found = by_neighbours(train, val, 3)
    assert (found.top1, found.count) == (right, 40) and 20 < right < 40


def test_a_linear_layer_tells_apart_what_a_plane_does() -> None:
    train, val = features(300, 1), features(90, 2)
    found = by_linear_layer(train, val, 4).metrics()  # a class that nobody has is none to fail on
    assert found["top1"] > 0.75 and found["loss"] < 0.7 and found["top5"] == 1.0
    scaled = [Features(1000 * part.values - 5, part.labels) for part in (train, val)]
    assert by_linear_layer(*scaled, 4).metrics()["top1"] == pytest.approx(found["top1"], abs=0.02)


def test_pictures_of_one_class_teach_nothing() -> None:
    alike = Features(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(UserError, match="all of one class: take more of them"):
        probe(alike, alike, 2)


def test_features_of_sam_are_its_blocks_without_the_neck() -> None:
    torch.manual_seed(0)
    model = Sam(PRESETS["tiny"]).eval()
    seen = []
    model.image_encoder.blocks[-1].register_forward_hook(lambda *call: seen.append(call[2]))
    pictures = PictureBatch(
        torch.randint(0, 256, (2, 3, 512, 512), dtype=torch.uint8), torch.tensor([1, -1]), *[torch.arange(2)] * 2
    )
    found = extract(model, [pictures], CPU)
    assert found.labels.tolist() == [1] and found.values.shape == (1, 128)
    torch.testing.assert_close(found.values, seen[0].mean((1, 2)))


def test_features_of_a_plain_vit_are_those_that_its_head_sees() -> None:
    from sam_ds.modeling.classifier import Classifier

    torch.manual_seed(0)
    model = Classifier(VitConfig(dim=32, depth=2, num_heads=2, image_size=16, patch_size=8), 3).eval()
    seen = []
    model.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    pictures = batch([0, 2])
    found = extract(model, [pictures], CPU)
    evaluate(model, [pictures], CPU)
    torch.testing.assert_close(found.values, seen[0])
