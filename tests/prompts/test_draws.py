import math

import pytest
import scipy.stats
import torch

from sam_ds.prompts.draws import beta, normal, object_keys, uniform

KEYS = object_keys(3, torch.arange(5000), torch.arange(5000) % 7)


def test_draws_are_a_pure_function_of_their_key_and_salt():
    again = object_keys(3, torch.arange(4000, 5000), torch.arange(4000, 5000) % 7)
    assert torch.equal(uniform(KEYS, 1)[4000:], uniform(again, 1))
    assert not torch.equal(uniform(KEYS, 1), uniform(KEYS, 2))
    assert not torch.equal(
        object_keys(4, torch.arange(9), torch.arange(9)), object_keys(3, torch.arange(9), torch.arange(9))
    )


def test_keys_do_not_collide():
    positions, masks = torch.meshgrid(torch.arange(300), torch.arange(300), indexing="ij")
    assert object_keys(0, positions.flatten(), masks.flatten()).unique().numel() == 90_000


def test_uniform_fills_the_unit_interval_evenly():
    u = uniform(KEYS, 5, 20)
    assert u.min() >= 0 and u.max() < 1
    counts = torch.histc(u, 10, 0, 1)
    expected = u.numel() / 10
    assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001


def test_neighbouring_draws_are_uncorrelated():
    u = uniform(KEYS, 5, 20) - 0.5
    bound = 4 / math.sqrt(u[:, 1:].numel())
    assert abs((u[:, 1:] * u[:, :-1]).mean() * 12) < bound
    assert abs((u[1:] * u[:-1]).mean() * 12) < bound


def test_normal_has_the_moments_of_the_standard_normal():
    z = normal(KEYS, 9, 40)
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01 and abs((z**4).mean() - 3) < 0.1


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8, 1.0, 3.0, 20.0, 2000.0])
def test_beta_has_the_distribution_of_its_name(alpha: float) -> None:
    drawn = beta(KEYS, 11, alpha)
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert scipy.stats.kstest(drawn.double().numpy(), scipy.stats.beta(alpha, alpha).cdf).pvalue > 0.001
