"""Which sample stands where in an epoch, and its seed, by the run's seed: the versions of it, which checkpoints name.

Another version is another run. So a version is never changed, and a resumed run keeps the version that it began with.
"""

import math
from typing import Protocol

import numpy as np
import torch

SMALL = 2**16  # samples; the order of so few is kept in memory
ROUNDS = 8  # of the Feistel network


class Draws(Protocol):
    """The draws of an epoch.

    Args:
        size: samples of the dataset, N.
        repeats: how often a sample may come in the epoch.
        seed: the run's.
        epoch: counted from 0.
        shuffle: whether the order is drawn; else it is the dataset's.
    """

    def __init__(self, size: int, repeats: int, seed: int, epoch: int, shuffle: bool) -> None: ...

    def order(self, slots: np.ndarray) -> np.ndarray:
        """The positions in the dataset of the samples at slots of the epoch, both in 0..N-1, of any shape."""

    def seeds(self, positions: np.ndarray, times: np.ndarray) -> np.ndarray:
        """The seeds, in 0..2**62-1, of samples for the time that each comes, in 0..repeats-1."""


class DrawnAtOnce:
    """Version 1: all N of an epoch are drawn in advance, by PyTorch's generator."""

    def __init__(self, size: int, repeats: int, seed: int, epoch: int, shuffle: bool) -> None:
        # PyTorch's generator takes 32 bits: seed and epoch are mixed into them.
        mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(mixed)
        self._seeds = torch.randint(2**62, (size, repeats), generator=generator).numpy()
        self._order = torch.randperm(size, generator=generator).numpy() if shuffle else None

    def order(self, slots: np.ndarray) -> np.ndarray:
        return slots if self._order is None else self._order[slots]

    def seeds(self, positions: np.ndarray, times: np.ndarray) -> np.ndarray:
        return self._seeds[positions, times]


class KeyedDraws:
    """Version 2: each draw is computed from a key of 64 bits and its number alone, in memory that does not grow with N.

    The order of up to ``SMALL`` samples is the order of their random numbers. The order of more is a keyed permutation,
    see ``KeyedPermutation``. The numbers do not depend on a version of PyTorch or NumPy.
    """

    def __init__(self, size: int, repeats: int, seed: int, epoch: int, shuffle: bool) -> None:
        keys = np.random.SeedSequence([seed, epoch]).generate_state(2 + ROUNDS, np.uint64)
        self._repeats, self._key = repeats, keys[0]
        self._permutation = KeyedPermutation(size, keys[2:]) if shuffle and size > SMALL else None
        # The numbers are a permutation of 64 bits: no two of them are equal.
        self._order = random_bits(keys[1], np.arange(size)).argsort() if shuffle and size <= SMALL else None

    def order(self, slots: np.ndarray) -> np.ndarray:
        if self._permutation is not None:
            return self._permutation(slots)
        return slots if self._order is None else self._order[slots]

    def seeds(self, positions: np.ndarray, times: np.ndarray) -> np.ndarray:
        return (random_bits(self._key, positions * self._repeats + times) >> np.uint64(2)).astype(np.int64)


DRAWS: dict[int, type[Draws]] = {1: DrawnAtOnce, 2: KeyedDraws}
NEWEST = max(DRAWS)


class KeyedPermutation:
    """A permutation of 0..N-1 of which any part can be computed by itself.

    It is a Feistel network on the pairs ``(x // width, x % width)`` with ``width = ceil(sqrt(N))``, whose rounds add to
    the one half, modulo its range, a random number that is keyed by the other (Black and Rogaway, "Ciphers with
    arbitrary finite domains", CT-RSA 2002). The pairs are up to ``width`` more than N: a result beyond N goes through
    the network again, until it is below N ("cycle walking", in the same paper).

    Args:
        size: N, from 1 to 2**62.
        keys: of the rounds, 64 bits each.
    """

    def __init__(self, size: int, keys: np.ndarray) -> None:
        width = math.isqrt(size - 1) + 1
        self.size, self.width, self.rows = (np.uint64(n) for n in (size, width, -(-size // width)))
        self.keys = keys

    def __call__(self, slots: np.ndarray) -> np.ndarray:
        """Places in 0..N-1, of any shape, to where the permutation takes them."""
        found = self._encipher(slots.astype(np.uint64))
        while (beyond := found >= self.size).any():
            found[beyond] = self._encipher(found[beyond])
        return found.astype(np.int64)

    def _encipher(self, numbers: np.ndarray) -> np.ndarray:
        left, right = numbers // self.width, numbers % self.width
        for first, second in zip(self.keys[::2], self.keys[1::2]):
            left = (left + random_below(self.rows, first, right)) % self.rows
            right = (right + random_below(self.width, second, left)) % self.width
        return left * self.width + right


def random_below(bound: np.uint64, key: np.uint64, numbers: np.ndarray) -> np.ndarray:
    """A random number below ``bound`` (up to 2**32) for each number."""
    return ((random_bits(key, numbers) >> np.uint64(32)) * bound) >> np.uint64(32)


def random_bits(key: np.uint64, numbers: np.ndarray) -> np.ndarray:
    """64 random bits for each number of at least 0, other ones for each number.

    What SplitMix64 with the state ``key`` gives after as many steps (Steele, Lea and Flood, "Fast splittable
    pseudorandom number generators", OOPSLA 2014).
    """
    bits = numbers.astype(np.uint64)
    bits *= np.uint64(0x9E3779B97F4A7C15)
    bits += key
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    return bits
