"""Nothing that is read from outside leads to a traceback, a hang or a wrong accept: some cases of each kind."""

from __future__ import annotations

from datetime import timedelta
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import Target, targets

NAMES = [
    "rle",
    "sa1b json",
    "sample",
    "jpeg",
    "picture",
    "coco json",
    "label map",
    "tar",
    "index file",
    "index of pictures",
    "deepspeed json",
    "hostfile",
    "--set",
    "recipe json",
    "classes json",
    "manifest",
    "weights",
    "names and shapes",
]
SEEDED = 1000  # cases of a fixed seed: the same in every run, and cheap


@pytest.fixture(scope="module")
def all_targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return {target.name: target for target in targets(tmp_path_factory.mktemp("fuzz"))}


def test_every_target_is_tried(all_targets: dict[str, Target]) -> None:
    assert list(all_targets) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_seeded(all_targets: dict[str, Target], name: str) -> None:
    target, rng = all_targets[name], Random(1)
    accepted = sum(target.check(target.draw(rng)) for _ in range(SEEDED))
    assert 0 < accepted < SEEDED


@pytest.mark.parametrize("name", NAMES)
def test_searched(all_targets: dict[str, Target], name: str) -> None:
    """hypothesis looks for a case, and finds the smallest."""
    target = all_targets[name]

    @settings(
        max_examples=100,
        deadline=timedelta(seconds=5),
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def search(rng: Random) -> None:
        target.check(target.draw(rng))

    search()
