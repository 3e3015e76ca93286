"""The order of samples is a permutation an epoch, and the same for any number of ranks."""

from __future__ import annotations

import itertools

import pytest

from sam_ds.data.sampler import Sampler, Share, permuted


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 121, 1000, 4097])
def test_permutation(size: int) -> None:
    assert sorted(permuted(i, size, seed=3, epoch=0) for i in range(size)) == list(range(size))


def test_permutations_differ_by_seed_and_epoch() -> None:
    orders = {tuple(permuted(i, 50, seed, epoch) for i in range(50)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_permutation_is_even() -> None:
    """Every place is taken by every number about as often: chi-squared of 12 x 12 cells, 121 degrees of freedom."""
    size, draws = 12, 800
    counts = [[0] * size for _ in range(size)]
    for seed in range(draws):
        for place in range(size):
            counts[place][permuted(place, size, seed, 0)] += 1
    expected = draws / size
    chi = sum((c - expected) ** 2 / expected for row in counts for c in row)
    assert chi < 121 + 5 * (2 * 121) ** 0.5


def test_large_sets_cost_nothing() -> None:
    size = 11_200_000
    assert len({permuted(i, size, 0, 0) for i in range(5000)}) == 5000


def test_neighbours_do_not_stay_neighbours() -> None:
    order = [permuted(i, 1000, 0, 0) for i in range(1000)]
    assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(order)) < 15


def test_stream_goes_through_epochs() -> None:
    sampler = Sampler(7, seed=1)
    stream = [sampler.sample(p) for p in range(21)]
    assert [sorted(stream[i : i + 7]) for i in (0, 7, 14)] == [list(range(7))] * 3
    assert stream[:7] != stream[7:14]
    assert [sampler.epoch(p) for p in (0, 6, 7, 20)] == [0, 0, 1, 2]


def test_substitutes_are_of_the_epoch_and_fixed() -> None:
    sampler = Sampler(50, seed=1)
    tried = [sampler.substitute(12, attempt) for attempt in range(1, 20)]
    assert tried == [Sampler(50, seed=1).substitute(12, attempt) for attempt in range(1, 20)]
    assert all(0 <= sample < 50 for sample in tried) and len(set(tried)) > 10


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_see_the_same_global_batches(world: int) -> None:
    micro_batch, accumulation = 2, 8 // world
    shares = [Share(micro_batch, accumulation, rank, world) for rank in range(world)]
    for step in range(3):
        by_micro = [[share.positions(step, micro) for share in shares] for micro in range(accumulation)]
        # Rank after rank takes turns: one picture of each, and again.
        order = [p for parts in by_micro for turn in zip(*parts, strict=True) for p in turn]
        assert order == list(range(step * 16, step * 16 + 16))
