import pytest
import torch
import torch.nn.functional as F

from sam_ds.ops.mask_loss import mask_loss


def by_hand(logits, truth, valid, alpha, gamma):
    """The definitions, mask by mask on the cut-out valid part, in float64."""
    x = F.interpolate(logits.double(), truth.shape[-2:], mode="bilinear", align_corners=False)
    focal, dice, iou = (torch.zeros(x.shape[:2], dtype=torch.float64) for _ in range(3))
    for o in range(x.shape[0]):
        for c in range(x.shape[1]):
            h, w = valid[o]
            z, t = x[o, c, :h, :w].flatten(), truth[o, :h, :w].flatten().double()
            p = z.sigmoid()
            p_t = torch.where(t > 0, p, 1 - p)
            alpha_t = torch.where(t > 0, alpha, 1 - alpha) if alpha >= 0 else torch.ones_like(t)
            focal[o, c] = (-alpha_t * (1 - p_t) ** gamma * p_t.log()).mean()
            dice[o, c] = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
            hit, either = ((z > 0) & (t > 0)).sum(), ((z > 0) | (t > 0)).sum()
            iou[o, c] = hit / either if either else 1
    return focal, dice, iou


@pytest.mark.parametrize("implementation", ["reference", "fused"])
@pytest.mark.parametrize("alpha,gamma", [(0.25, 2), (-1, 2), (0.5, 1.5), (0.5, 0)])
def test_equals_the_definitions_and_their_gradients(alpha, gamma, implementation):
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 5, 6, requires_grad=True)
    truth = torch.rand(3, 20, 24) > 0.6
    valid = torch.tensor([[20, 24], [13, 24], [20, 7]])
    ours, theirs = (
        mask_loss(logits, truth, valid, alpha, gamma, implementation),
        by_hand(logits, truth, valid, alpha, gamma),
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=1e-5)
    weights = torch.rand(2, 3, 2)
    (grad,) = torch.autograd.grad((weights[0] * ours.focal + weights[1] * ours.dice).sum(), logits)
    (expected,) = torch.autograd.grad((weights[0] * theirs[0] + weights[1] * theirs[1]).sum(), logits)
    torch.testing.assert_close(grad, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["reference", "fused"])
@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_stays_finite_on_empty_and_full_masks_and_extreme_logits(fill, scale, implementation):
    logits = (torch.randn(2, 1, 8, 8) * scale).requires_grad_()
    loss = mask_loss(logits, torch.full((2, 8, 8), fill), torch.tensor([[8, 8], [3, 8]]), implementation=implementation)
    (loss.focal + loss.dice).sum().backward()
    assert all(part.isfinite().all() for part in loss) and logits.grad.isfinite().all()


def test_what_is_predicted_in_the_padding_does_not_count():
    logits, truth = torch.randn(1, 3, 8, 8), torch.rand(1, 8, 8) > 0.5
    changed_logits, changed_truth = logits.clone(), truth.clone()
    changed_logits[..., 6:] = 9.0
    changed_truth[..., 6:] = True
    valid = torch.tensor([[8, 6]])
    for a, b in zip(mask_loss(logits, truth, valid), mask_loss(changed_logits, changed_truth, valid), strict=True):
        assert torch.equal(a, b)


def test_the_fused_form_keeps_nothing_but_the_logits():
    logits = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):
        mask_loss(logits, torch.rand(2, 8, 8) > 0.5, torch.full((2, 2), 8), implementation="fused")
    large = [tensor for tensor in kept if tensor.shape == logits.shape]
    assert len(large) == 1 and large[0].data_ptr() == logits.data_ptr()


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="no implementation 'fast'"):
        mask_loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4), torch.full((1, 2), 4), implementation="fast")
