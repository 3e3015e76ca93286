"""Which picture comes when: a pure function, with no state but the step.

The stream of samples is endless. Position p lies in epoch p // n and shows the picture that the epoch's permutation
puts at p % n. Optimizer step s takes the positions [s * G, (s + 1) * G), where G = micro-batch * ranks * accumulation;
of these, micro-batch i is the i-th stretch of micro-batch * ranks positions, and rank r takes every ranks-th of a
stretch, from the r-th on. So any number of ranks sees the same global batches while G stays the same, and a run goes
on exactly where it stopped, whatever the number of ranks before.

The permutation is computed, not stored: a Feistel network (Luby and Rackoff 1988) permutes the numbers of a few bits
more than needed, and numbers beyond n are sent through again until they fall below it (cycle walking; Black and
Rogaway 2002). It takes no memory and no time at the start of an epoch, whatever the size of the set.
"""

from __future__ import annotations

from dataclasses import dataclass

_MASK = (1 << 64) - 1
_ROUNDS = 8
_MIN_HALF_BITS = 4


def mix(value: int) -> int:
    """SplitMix64's finaliser: 64 bits that look random, from any 64 bits."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def permuted(place: int, size: int, seed: int, epoch: int) -> int:
    """The number at ``place`` of the permutation of range(size) that belongs to (seed, epoch)."""
    if not 0 <= place < size:
        raise ValueError(f"place {place} is not in a permutation of {size}")
    half = max(_MIN_HALF_BITS, (size - 1).bit_length() + 1 >> 1)
    low = (1 << half) - 1
    key = mix(mix(seed & _MASK) ^ epoch)
    while True:
        left, right = place >> half, place & low
        for turn in range(_ROUNDS):
            left, right = right, left ^ (mix(key ^ mix(right * _ROUNDS + turn)) & low)
        place = left << half | right
        if place < size:
            return place


@dataclass(frozen=True)
class Sampler:
    """The stream of one training: ``size`` pictures in an order that ``seed`` decides."""

    size: int
    seed: int

    def epoch(self, position: int) -> int:
        return position // self.size

    def sample(self, position: int) -> int:
        """The picture at a position of the stream."""
        epoch, place = divmod(position, self.size)
        return permuted(place, self.size, self.seed, epoch)

    def substitute(self, position: int, attempt: int) -> int:
        """The picture that takes the place of one that could not be read; ``attempt`` counts from 1."""
        place = mix(mix(position) ^ attempt) % self.size
        return permuted(place, self.size, self.seed, self.epoch(position))


@dataclass(frozen=True)
class Share:
    """What one rank takes of every global batch."""

    micro_batch: int
    accumulation: int
    rank: int
    world: int

    def positions(self, step: int, micro: int) -> list[int]:
        """Stream positions of micro-batch ``micro`` of optimizer step ``step``."""
        stretch = self.micro_batch * self.world
        start = (step * self.accumulation + micro) * stretch
        return list(range(start + self.rank, start + stretch, self.world))
