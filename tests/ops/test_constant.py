import torch

from sam_ds.ops import constant


def test_values_and_types():
    assert torch.equal(constant([1.5, -2.0], torch.device("cpu")), torch.tensor([1.5, -2.0]))
    assert torch.equal(constant([3, 4], torch.device("cpu")), torch.tensor([3, 4]))
    assert constant([3], torch.device("meta")).device.type == "meta"
