"""An epoch's order and seeds, computed one by one: a permutation, as random as one, in memory that does not grow."""

import tracemalloc
from itertools import islice, permutations

import numpy as np
import pytest

from crate_mm.datasets import GlobalBatchSampler
from crate_mm.datasets.draws import NEWEST, ROUNDS, SMALL, KeyedDraws, KeyedPermutation, random_bits

LARGE = SMALL + 4465  # the least that the Feistel network is for, and no square


def keys(seed: int) -> np.ndarray:
    return np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint64)


def order(size: int, seed: int = 0, epoch: int = 0, count: int | None = None) -> np.ndarray:
    return KeyedDraws(size, 1, seed, epoch, True).order(np.arange(count or size))


def chi_square(counts: np.ndarray) -> float:
    """How many standard deviations the statistic of equally likely cells is off, by their counts, about normal."""
    expected = counts.mean()
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5


def test_the_random_bits_are_splitmix64s():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert random_bits(np.uint64(1234567), np.arange(1, 5)).tolist() == published


@pytest.mark.parametrize("sizes", [range(1, 51), (97, 256, 257, 1000, 65535, 65536, 65537, LARGE, 300_007)])
def test_every_sample_comes_once(sizes):
    for size in sizes:
        for seed in range(3 if size < 100 else 1):
            assert np.array_equal(np.sort(KeyedPermutation(size, keys(seed))(np.arange(size))), np.arange(size)), size
            assert np.array_equal(np.sort(order(size, seed)), np.arange(size)), size


def test_a_part_is_that_of_the_whole():
    places = np.array([[5, 0], [LARGE - 1, 5]])
    assert np.array_equal(KeyedDraws(LARGE, 1, 3, 2, True).order(places), order(LARGE, 3, 2)[places])


@pytest.mark.parametrize("shuffled", [order, lambda size, seed: KeyedPermutation(size, keys(seed))(np.arange(size))])
def test_of_a_few_samples_every_order_comes(shuffled):
    for size in (2, 5):
        assert {tuple(shuffled(size, seed).tolist()) for seed in range(1000)} == set(permutations(range(size)))


@pytest.mark.parametrize("by", ["epoch", "seed"])
def test_every_order_of_four_is_as_likely(by):
    found = [tuple(order(4, **{by: number}).tolist()) for number in range(6000)]
    assert abs(chi_square(np.array([found.count(each) for each in permutations(range(4))]))) < 4


@pytest.mark.parametrize("size", [10, 64])
@pytest.mark.slow
def test_the_network_takes_every_place_to_every_position_alike(size):
    """Small ones, which are the hardest for a Feistel network."""
    counts = np.zeros((size, size))
    for seed in range(3000):
        counts[np.arange(size), KeyedPermutation(size, keys(seed))(np.arange(size))] += 1
    # Rows and columns have given sums: fewer degrees of freedom.
    assert chi_square(counts) < 4
    assert abs(chi_square(counts[0])) < 4
    assert abs(chi_square(counts[:, 0])) < 4


@pytest.mark.parametrize("size", [1000, LARGE, 10**8])
@pytest.mark.parametrize("by", ["epoch", "seed"])
def test_the_first_batch_is_from_anywhere(size, by):
    found = np.concatenate([order(size, count=128, **{by: number}) for number in range(400)])
    counts, _ = np.histogram(found, bins=50, range=(0, size))
    assert abs(chi_square(counts)) < 4
    last_digits = np.bincount(found % 10, minlength=10)  # another way to cut the dataset
    assert abs(chi_square(last_digits)) < 4


@pytest.mark.parametrize("other", [dict(epoch=1), dict(seed=1), dict(seed=2**32), dict(seed=2**64, epoch=7)])
@pytest.mark.parametrize("size", [1000, LARGE])
def test_another_epoch_and_another_seed_is_another_order(size, other):
    one, two = order(size), order(size, **other)
    assert abs(np.corrcoef(one, two)[0, 1]) < 4 / size**0.5
    # Of two orders that have nothing to do with each other about one place agrees, and about one pair of neighbours.
    assert (one == two).sum() < 10
    places = np.argsort(one)
    assert (np.diff(places[two]) == 1).sum() < 10


@pytest.mark.parametrize("size", [1000, LARGE])
def test_neighbours_of_the_dataset_are_none_of_the_order(size):
    found = order(size)
    assert abs(np.corrcoef(found, np.arange(size))[0, 1]) < 4 / size**0.5
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 4 / size**0.5
    assert (abs(np.diff(found)) == 1).sum() < 12


def test_seeds_are_uniform_and_of_their_own():
    def drawn(epoch: int, repeats: int = 1) -> np.ndarray:
        draws = KeyedDraws(LARGE, repeats, 0, epoch, True)
        return draws.seeds(np.arange(LARGE)[:, None], np.arange(repeats))

    one, other, three = drawn(0), drawn(1), drawn(0, 3)
    assert one.min() >= 0
    assert one.max() < 2**62
    assert len(np.unique(np.concatenate([one.ravel(), other.ravel()]))) == 2 * LARGE
    assert len(np.unique(three)) == 3 * LARGE
    for seeds in (one, other, three):
        for shift in range(0, 62, 8):  # NumPy's state takes the low 32 bits
            counts = np.bincount((seeds.ravel() >> shift) % 64, minlength=64)
            assert abs(chi_square(counts)) < 4, shift
    assert abs(np.corrcoef(one[:, 0], other[:, 0])[0, 1]) < 4 / LARGE**0.5


def test_the_second_version_stays_as_it_is():
    """Checkpoints rely on it: another order or seed is another version."""
    assert NEWEST == 2
    small, large = KeyedDraws(100, 3, 7, 1, True), KeyedDraws(10**8, 1, 7, 1, True)
    seeds = [3253863168967803010, 4234369475205106437, 1872945075916234238]
    assert small.order(np.arange(4)).tolist() == [51, 65, 42, 77]
    assert large.order(np.arange(4)).tolist() == [49636994, 96936920, 59021230, 69704973]
    assert small.seeds(np.array([0, 0, 99]), np.array([0, 1, 2])).tolist() == seeds
    unshuffled = KeyedDraws(100, 3, 7, 1, False)
    assert unshuffled.order(np.arange(4)).tolist() == [0, 1, 2, 3]
    assert unshuffled.seeds(np.array([0, 0, 99]), np.array([0, 1, 2])).tolist() == seeds


class Many:
    """A hundred million samples."""

    def __len__(self) -> int:
        return 10**8


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_memory_of_an_epoch_does_not_grow_with_its_samples(repeats):
    sampler = GlobalBatchSampler(Many(), 2048, seed=0, repeats=repeats)
    sampler.rank, sampler.world_size = 3, 16
    tracemalloc.start()
    try:
        seen = {pair[0] for pair in islice(sampler, 12_800)}  # a hundred batches
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16_000_000
    assert len(seen) > 12_000 / repeats
    assert len(sampler) == 10**8 // 2048 * 128
    sampler.start = 10**8 // 2048 - 1
    assert len(list(sampler)) == 128
