"""Shuffle versions: the order of an epoch's samples and their seeds, computed from the run's seed.

Checkpoints store the version, and a resumed run keeps it: another version would change the order and the seeds. The
code of a version never changes. A slot is an index in the epoch; a position is an index in the dataset.
"""

import math
from typing import Protocol

import numpy as np
import torch

SMALL = 2**16  # samples; up to this many, the order is kept in memory
ROUNDS = 8  # rounds of the Feistel network


class Draws(Protocol):
    """The order and the seeds of an epoch.

    Args:
        size: number of samples of the dataset, N.
        repeats: maximum number of times that a sample appears in the epoch.
        seed: seed of the run.
        epoch: counted from 0.
        shuffle: whether the order is random; if False, it is the order of the dataset.
    """

    def __init__(self, size: int, repeats: int, seed: int, epoch: int, shuffle: bool) -> None: ...

    def order(self, slots: np.ndarray) -> np.ndarray:
        """Return the positions of the samples at the given slots, both in 0..N-1, of any shape."""

    def seeds(self, positions: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Return a seed in 0..2**62-1 for each sample and repeat; ``times`` are the repeats, in 0..repeats-1."""


class PrecomputedDraws:
    """Version 1: PyTorch's generator draws all N samples of an epoch in advance."""

    def __init__(self, size: int, repeats: int, seed: int, epoch: int, shuffle: bool) -> None:
        # PyTorch's generator uses 32 bits of its seed, so seed and epoch are mixed into 32 bits.
        mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(mixed)
        self._seeds = torch.randint(2**62, (size, repeats), generator=generator).numpy()
        self._order = torch.randperm(size, generator=generator).numpy() if shuffle else None

    def order(self, slots: np.ndarray) -> np.ndarray:
        return slots if self._order is None else self._order[slots]

    def seeds(self, positions: np.ndarray, times: np.ndarray) -> np.ndarray:
        return self._seeds[positions, times]


class KeyedDraws:
    """Version 2: each draw is computed from a 64-bit key and the draw's number, in memory that does not grow with N.

    Up to ``SMALL`` samples are sorted by random numbers. A larger dataset is ordered by a ``KeyedPermutation``. Order
    and seeds do not depend on the version of PyTorch or NumPy.
    """

    def __init__(self, size: int, repeats: int, seed: int, epoch: int, shuffle: bool) -> None:
        keys = np.random.SeedSequence([seed, epoch]).generate_state(2 + ROUNDS, np.uint64)
        self._repeats, self._key = repeats, keys[0]
        self._permutation = KeyedPermutation(size, keys[2:]) if shuffle and size > SMALL else None
        # random_bits permutes the 64-bit integers, so no two numbers are equal.
        self._order = random_bits(keys[1], np.arange(size)).argsort() if shuffle and size <= SMALL else None

    def order(self, slots: np.ndarray) -> np.ndarray:
        if self._permutation is not None:
            return self._permutation(slots)
        return slots if self._order is None else self._order[slots]

    def seeds(self, positions: np.ndarray, times: np.ndarray) -> np.ndarray:
        return (random_bits(self._key, positions * self._repeats + times) >> np.uint64(2)).astype(np.int64)


DRAWS: dict[int, type[Draws]] = {1: PrecomputedDraws, 2: KeyedDraws}
NEWEST = max(DRAWS)


class KeyedPermutation:
    """A permutation of 0..N-1 whose elements can be computed independently.

    It is a Feistel network on the pairs ``(x // width, x % width)`` with ``width = ceil(sqrt(N))``. Each round computes
    a random number from one half and adds it to the other half, modulo that half's range (Black and Rogaway, "Ciphers
    with arbitrary finite domains", CT-RSA 2002). There can be up to ``width`` more pairs than elements. A result of N
    or more therefore passes through the network again, until it is below N ("cycle walking", in the same paper).

    Args:
        size: N, from 1 to 2**62.
        keys: keys of the rounds, 64 bits each.
    """

    def __init__(self, size: int, keys: np.ndarray) -> None:
        width = math.isqrt(size - 1) + 1
        self.size, self.width, self.rows = (np.uint64(n) for n in (size, width, -(-size // width)))
        self.keys = keys

    def __call__(self, slots: np.ndarray) -> np.ndarray:
        """Permute slots in 0..N-1, of any shape."""
        positions = self._encipher(slots.astype(np.uint64))
        while (beyond := positions >= self.size).any():
            positions[beyond] = self._encipher(positions[beyond])
        return positions.astype(np.int64)

    def _encipher(self, numbers: np.ndarray) -> np.ndarray:
        left, right = numbers // self.width, numbers % self.width
        for first, second in zip(self.keys[::2], self.keys[1::2]):
            left = (left + random_below(self.rows, first, right)) % self.rows
            right = (right + random_below(self.width, second, left)) % self.width
        return left * self.width + right


def random_below(bound: np.uint64, key: np.uint64, numbers: np.ndarray) -> np.ndarray:
    """Return a random number below ``bound`` (up to 2**32) for each of ``numbers``."""
    return ((random_bits(key, numbers) >> np.uint64(32)) * bound) >> np.uint64(32)


def random_bits(key: np.uint64, numbers: np.ndarray) -> np.ndarray:
    """Return 64 random bits for each non-negative number, different for different numbers.

    For a number n, the bits are the output of SplitMix64 after n steps from the state ``key`` (Steele, Lea and Flood,
    "Fast splittable pseudorandom number generators", OOPSLA 2014).
    """
    bits = numbers.astype(np.uint64)
    bits *= np.uint64(0x9E3779B97F4A7C15)
    bits += key
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    return bits
