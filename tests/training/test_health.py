"""When the numbers of a training are told to be wrong."""

from __future__ import annotations

import pytest

from sam_ds.config.schema import TrainConfig
from sam_ds.training.health import Health
from sam_ds.training.state import TrainState


def test_steps_without_a_finite_gradient_are_borne_up_to_a_number_in_a_row() -> None:
    health, state = Health(TrainConfig(max_skipped=3)), TrainState()
    said = []
    for skipped in (True, True, False, True, True, True):
        state = state.after(8, skipped)
        said.append(health.after_step(state))
    assert said[:5] == [""] * 5 and "3 steps in a row" in said[5]


def reports(losses: list[float], factor: float = 4.0, stages: str = "") -> list[tuple[bool, bool]]:
    """For every loss: is it a spike, and is it enough to go back."""
    health = Health(TrainConfig(spike_factor=factor, spike_reports=2))
    pairs = [health.after_report(loss, stages[i : i + 1]) for i, loss in enumerate(losses)]
    return [(spike, bool(trouble)) for spike, trouble in pairs]


@pytest.mark.parametrize(
    ("losses", "stages", "expected"),
    [
        ([1, 1, 1, 1, 1, 5, 1, 5, 5], "", "-----x-xX"),
        ([1, 1, 1, 1, 1, 3, 3, 3, 3], "", "---------"),  # no spike: not four times as much
        ([8, 6, 4, 3, 2, 1, 1, 1, 1], "", "---------"),
        ([1, 1, 9, 1, 1, 1, 1, 9, 9], "", "-------xX"),  # too few to compare with at first
        ([1, 1, 1, 1, 1, 9, 9, 9, 9], "aaaaabbbb", "---------"),  # more rounds add up to more
    ],
)
def test_spikes(losses: list[float], stages: str, expected: str) -> None:
    said = reports(losses, stages=stages)
    assert "".join("X" if enough else "x" if spike else "-" for spike, enough in said) == expected
    assert reports(losses, 0.0, stages) == [(False, False)] * len(losses)


def test_a_rewound_state_leaves_out_what_led_to_the_trouble() -> None:
    saved = TrainState(step=40, pictures=320, left_out=5)
    before = TrainState(step=52, pictures=416, skipped=9, skipped_in_a_row=9, left_out=5, rewinds=1)
    after = saved.rewound(before)
    assert (after.step, after.pictures, after.rewinds, after.skipped_in_a_row) == (40, 320, 2, 0)
    assert after.step + after.left_out == before.step + before.left_out
