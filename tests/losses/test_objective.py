import torch

from sam_ds.config.schema import LossConfig
from sam_ds.losses.objective import round_loss
from sam_ds.ops.mask_loss import mask_loss
from sam_ds.types import Prediction

torch.manual_seed(0)
TRUTH = torch.rand(5, 16, 16) > 0.5
VALID = torch.tensor([[16, 16]]).expand(5, -1)


def prediction(count=3):
    return Prediction(torch.randn(5, count, 16, 16, requires_grad=True), torch.rand(5, count, requires_grad=True))


def test_only_the_best_mask_of_each_object_is_trained():
    asked = prediction()
    allowed = torch.ones(5, 3, dtype=torch.bool)
    loss = round_loss(asked, allowed, TRUTH, VALID, LossConfig())
    loss.total.sum().backward()
    focal, dice, _ = mask_loss(asked.masks.detach(), TRUTH, VALID)
    best = (20 * focal + dice).argmin(1)
    trained = asked.masks.grad.abs().sum((-2, -1)) > 0
    assert torch.equal(trained, torch.nn.functional.one_hot(best, 3).bool())
    assert torch.equal(asked.iou.grad != 0, trained)
    assert len(set(best.tolist())) > 1  # chosen for each object, not for the batch


def test_masks_that_were_not_asked_for_are_never_trained():
    asked = prediction(4)
    allowed = torch.tensor([[True, False, False, False], [False, True, True, True]] * 2 + [[True, False, False, False]])
    loss = round_loss(asked, allowed, TRUTH, VALID, LossConfig(iou_masks="all"))
    loss.total.sum().backward()
    trained = asked.masks.grad.abs().sum((-2, -1)) > 0
    assert not (trained & ~allowed).any() and (trained.sum(1) == 1).all()
    assert torch.equal(asked.iou.grad != 0, allowed)


def test_the_total_weighs_the_parts():
    asked = prediction(1)
    loss = round_loss(asked, torch.ones(5, 1, dtype=torch.bool), TRUTH, VALID, LossConfig(focal=3, dice=5, iou=7))
    torch.testing.assert_close(loss.total, 3 * loss.focal + 5 * loss.dice + 7 * loss.iou_error)
    torch.testing.assert_close(loss.iou_error, (asked.iou[:, 0] - loss.iou) ** 2)
