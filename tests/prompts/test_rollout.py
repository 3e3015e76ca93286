"""The rounds, point source, fed-back masks and mask counts of SAM's interactive training."""

import itertools
from collections import Counter

import pytest
import torch

from sam_ds.config.schema import PromptConfig
from sam_ds.prompts.draws import object_keys
from sam_ds.prompts.first import MASK_LOGIT, first_prompt
from sam_ds.prompts.rollout import clickless_round, rollout
from sam_ds.types import BOTTOM_RIGHT, MASKED, NEGATIVE, PAD, POSITIVE, TOP_LEFT, Prediction

SIZE, GRID, INPUT = 32, 16, 64
STRIDE = INPUT // SIZE


def squares(count):
    truth = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
    for i in range(count):
        truth[i, 4 + i % 8 : 20 + i % 8, 6 : 14 + i % 10] = True
    return truth


def keys(count, seed=0):
    return object_keys(seed, torch.arange(count), torch.zeros(count, dtype=torch.long))


class Recorder:
    """A decoder that always answers the same mask and keeps what it was asked."""

    def __init__(self, logits):
        self.logits, self.asked = logits, []

    def __call__(self, embeddings, picture, prompts, multimask):
        self.asked.append((prompts, multimask))
        count = {None: 4, True: 3, False: 1}[multimask]
        masks = self.logits[:, None].expand(-1, count, -1, -1)
        iou = torch.arange(count).float().expand(len(masks), -1)
        return Prediction(masks * (1 + torch.arange(count))[:, None, None], iou)


def run(config, truth, clickless=3, logits=None):
    decoder = Recorder(torch.full((len(truth), GRID, GRID), -1.0) if logits is None else logits)
    inside = torch.ones_like(truth)
    rounds = list(
        rollout(
            decoder,
            None,
            None,
            truth,
            inside,
            keys(len(truth)),
            torch.tensor(clickless),
            config,
            INPUT,
            STRIDE,
            (GRID, GRID),
        )
    )
    return rounds, decoder.asked


def test_the_papers_eleven_rounds():
    rounds, asked = run(PromptConfig(), squares(6))
    assert len(rounds) == 11
    assert [multimask for _, multimask in asked] == [True] + [False] * 10
    assert [p.points.shape[1] for p, _ in asked] == list(range(3, 14))  # one slot more a round, two for a box
    assert not asked[0][0].has_mask.any() and all(p.has_mask.all() for p, _ in asked[1:])
    clicks = [((p.labels == POSITIVE) | (p.labels == NEGATIVE)).sum(1).float().mean().item() for p, _ in asked]
    added = [round(b - a, 3) for a, b in itertools.pairwise(clicks)]
    assert added == [1, 1, 0, 1, 1, 1, 1, 1, 1, 0]  # round 3 and the last add none


def test_the_clickless_round_moves_over_the_sequence():
    config = PromptConfig()
    drawn = Counter(clickless_round(0, step, config) for step in range(2000))
    assert sorted(drawn) == list(range(1, 10)) and min(drawn.values()) > 150
    assert clickless_round(0, 5, config) == clickless_round(0, 5, config)


def test_clicks_fall_where_the_prediction_is_wrong():
    truth = squares(8)
    half = torch.where(torch.arange(GRID) < 6, 4.0, -4.0).expand(8, GRID, GRID).clone()  # the left part is "object"
    _, asked = run(PromptConfig(point=1, box=0), truth, logits=half)
    predicted = torch.nn.functional.interpolate(half[:, None], (SIZE, SIZE), mode="bilinear")[:, 0] > 0
    point, label = asked[1][0].points[:, 0], asked[1][0].labels[:, 0]
    x, y = ((point + 0.5) / 2 - 0.5).long().unbind(-1)
    rows = torch.arange(8)
    assert (predicted ^ truth)[rows, y, x].all()
    assert torch.equal(label == POSITIVE, truth[rows, y, x])
    assert {POSITIVE, NEGATIVE} >= set(label.tolist())


def test_a_right_prediction_gets_no_click():
    truth = torch.ones(2, SIZE, SIZE, dtype=torch.bool)
    _, asked = run(PromptConfig(), truth, logits=torch.ones(2, GRID, GRID))
    assert (asked[1][0].labels[:, 0] == MASKED).all()


def test_the_mask_with_the_highest_predicted_iou_is_fed_back():
    _, asked = run(PromptConfig(), squares(2))
    assert (asked[1][0].masks == -3).all()  # the third of three, the recorder scales each by its number


def test_first_prompts_are_half_points_half_noisy_boxes():
    truth = squares(1).expand(4000, -1, -1)
    prompts, ambiguous = first_prompt(truth, keys(4000), PromptConfig(), INPUT, STRIDE, (GRID, GRID))
    assert ambiguous.all()
    is_box = prompts.labels[:, 1] == TOP_LEFT
    assert abs(is_box.float().mean() - 0.5) < 0.03
    assert (prompts.labels[is_box] == torch.tensor([MASKED, TOP_LEFT, BOTTOM_RIGHT])).all()
    assert (prompts.labels[~is_box] == torch.tensor([POSITIVE, PAD, MASKED])).all()
    noise = prompts.points[is_box][:, 1:].flatten(1) - torch.tensor([12.5, 8.5, 26.5, 38.5])
    assert noise.abs().max() <= 20 * INPUT / 1024 + 1e-4
    assert (noise[:, 0] * noise[:, 2]).mean().abs() < 0.05  # corners move on their own


def test_box_noise_is_a_tenth_of_the_side_where_the_limit_allows():
    truth = squares(1).expand(4000, -1, -1)
    config = PromptConfig(point=0, box=1, box_noise_max=1000)
    prompts, _ = first_prompt(truth, keys(4000), config, INPUT, STRIDE, (GRID, GRID))
    torch.testing.assert_close(
        prompts.points[:, 1:].flatten(1).std(0), torch.tensor([1.4, 3.0, 1.4, 3.0]), rtol=0.05, atol=0
    )


def test_mixed_prompts_of_the_curriculum():
    config = PromptConfig(point=0.5, box=0.3, mask=0.15, none=0.05, num_points=(0.4, 0.3, 0.15, 0.1, 0.05))
    truth = squares(8).repeat(1000, 1, 1)
    prompts, ambiguous = first_prompt(truth, keys(8000), config, INPUT, STRIDE, (GRID, GRID))
    num_points = (prompts.labels[:, :-2] == POSITIVE).sum(1)
    is_box, is_mask = prompts.labels[:, -2] == TOP_LEFT, prompts.has_mask
    nothing = (num_points == 0) & ~is_box & ~is_mask
    shares = torch.stack([num_points > 0, is_box, is_mask, nothing]).float().mean(1)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.02, rtol=0)
    counts = torch.bincount(num_points[num_points > 0], minlength=6)[1:] / (num_points > 0).sum()
    torch.testing.assert_close(counts, torch.tensor(config.num_points), atol=0.02, rtol=0)
    assert torch.equal(ambiguous, num_points < 2)
    assert (prompts.labels[is_mask | nothing] == MASKED).all()
    on_truth = torch.nn.functional.interpolate(truth[:, None].float(), (GRID, GRID))[:, 0] > 0.5
    agree = ((prompts.masks[:, 0] > 0) == on_truth).float().mean()
    assert 0.85 < agree < 0.99 and prompts.masks.abs().min() == MASK_LOGIT  # near the truth, not equal to it


def test_many_points_ask_for_the_single_mask_and_one_for_the_three():
    config = PromptConfig(point=1, box=0, num_points=(0.5, 0.5))
    rounds, asked = run(config, squares(64))
    count = (asked[0][0].labels == POSITIVE).sum(1)
    assert rounds[0].prediction.iou.shape[1] == 4
    assert torch.equal(rounds[0].allowed[:, 0], count > 1)
    assert torch.equal(rounds[0].allowed[:, 1:], (count == 1)[:, None].expand(-1, 3))


@pytest.mark.parametrize("kind", ["mask", "none"])
def test_a_pointless_start_gets_sams_padding_point_with_its_first_click(kind):
    config = PromptConfig(**{"point": 0, "box": 0, "mask": 0, "none": 0, kind: 1})
    _, asked = run(config, squares(3))
    assert (asked[0][0].labels == MASKED).all()
    assert (asked[1][0].labels[:, -2:] == torch.tensor([PAD, MASKED])).all()


def test_a_single_round_asks_for_every_mask():
    """Else the single mask's head would get no gradient, and ZeRO-3 would apply an old one."""
    _, asked = run(PromptConfig(correction_rounds=0, extra_rounds=0), squares(4))
    assert [multimask for _, multimask in asked] == [None]
