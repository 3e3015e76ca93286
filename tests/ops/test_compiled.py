import torch

from sam_ds.ops import distance_transform as distances
from sam_ds.ops.distance_transform import distance_transform


def test_without_numba_the_reference_runs(monkeypatch):
    masks = torch.rand(2, 9, 9) > 0.3
    expected = distance_transform(masks)
    monkeypatch.setattr(distances, "NUMBA", False)
    monkeypatch.setitem(__import__("sys").modules, "sam_ds.ops._distance_compiled", None)
    assert torch.equal(distance_transform(masks), expected)
