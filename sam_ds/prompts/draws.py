"""Random numbers as a pure function of what they are for, on any device, with no state.

Every object has a key made of the seed, its picture's place in the global stream of samples, and its own place
in the picture. A draw hashes the key with a salt that names the draw. So one rank and 256 ranks draw the same
prompts for the same object, and a resumed run goes on as if it had never stopped.

The hash is SplitMix64's finaliser (Steele, Lea, Flood 2014), in int64 arithmetic that wraps around.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FACTOR_1 = _signed(0xBF58476D1CE4E5B9)
_FACTOR_2 = _signed(0x94D049BB133111EB)
_STEPS = 513  # rows of a table of quantiles


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # int64's own shift copies the sign down


def _mix(x: Tensor) -> Tensor:
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _FACTOR_1
    x = (x ^ _shift(x, 27)) * _FACTOR_2
    return x ^ _shift(x, 31)


def object_keys(seed: int, positions: Tensor, mask_ids: Tensor) -> Tensor:
    """One int64 key an object, from int64 [O] positions in the stream and int64 [O] places in the picture."""
    key = _mix(torch.full_like(positions, seed))
    return _mix(_mix(key ^ positions) ^ mask_ids)


def uniform(keys: Tensor, salt: int, count: int = 1) -> Tensor:
    """float32 [O, count] in [0, 1). Draws of different salts are independent."""
    counter = torch.arange(count, device=keys.device)
    hashed = _mix(_mix(keys + _mix(torch.full_like(keys, salt)))[:, None] + counter)
    return _shift(hashed, 40).float() * 2.0**-24


def normal(keys: Tensor, salt: int, count: int = 1) -> Tensor:
    """float32 [O, count] of the standard normal distribution (Box and Muller 1958)."""
    u = uniform(keys, salt, 2 * count)
    radius = torch.sqrt(-2 * torch.log1p(-u[:, :count]))
    return radius * torch.cos(2 * math.pi * u[:, count:])


def beta(keys: Tensor, salt: int, alpha: float) -> Tensor:
    """float32 [O] of the symmetric Beta(alpha, alpha) distribution, by its quantiles.

    The density is (x (1 - x)) ** (alpha - 1). Below alpha = 1 it has no bound, but in t = x ** alpha it is
    (1 - x) ** (alpha - 1), which has one below 1/2. Its sum up to t, by trapezoids, is the distribution there, and
    1 - x is distributed as x is.
    """
    power = min(alpha, 1.0)
    t = torch.linspace(0, 0.5**power, _STEPS, dtype=torch.float64, device=keys.device)
    x = t ** (1 / power)
    density = (1 - x if alpha <= 1 else 4 * x * (1 - x)) ** (alpha - 1)
    known = F.pad((density[1:] + density[:-1]).cumsum(0), (1, 0))
    known = known / (2 * known[-1])  # up to 1/2, where half of it lies
    u = uniform(keys, salt)[:, 0].double()
    low = torch.minimum(u, 1 - u)
    after = torch.searchsorted(known, low, right=True).clamp(max=_STEPS - 1)
    part = (low - known[after - 1]) / (known[after] - known[after - 1])
    x = (t[after - 1] + part * (t[after] - t[after - 1])) ** (1 / power)
    return torch.where(u < 0.5, x, 1 - x).float()
