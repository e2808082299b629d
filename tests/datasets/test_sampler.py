"""Repeated augmentation, with all that the sampler promises without it."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from crate_mm.config import load_config, resolve_config
from crate_mm.datasets import ClassificationDataset, GlobalBatchSampler


def batches(size=12, repeats=3, world_size=1, start=0, count=100, epoch=1, shuffle=True):
    """The global batches of an epoch, as the processes load them."""
    parts = []
    for rank in range(world_size):
        sampler = GlobalBatchSampler(range(count), size, 3, shuffle, repeats)
        sampler.rank, sampler.world_size = rank, world_size
        sampler.set_epoch(epoch)
        sampler.start = start
        parts.append(list(sampler))
    shares = [len(range(rank, size, world_size)) for rank in range(world_size)]
    steps = len(parts[0]) // shares[0]
    return [[part[i * n : (i + 1) * n] for part, n in zip(parts, shares)] for i in range(steps)]


@pytest.mark.parametrize(("shuffle", "repeats"), [(True, 1), (True, 3), (False, 1)])
def test_the_first_version_of_the_draws_stays_for_runs_that_began_with_it(shuffle, repeats):
    mixed = int(np.random.SeedSequence([3, 1]).generate_state(1)[0])
    generator = torch.Generator().manual_seed(mixed)
    seeds = torch.randint(2**62, (100, repeats), generator=generator)
    order = torch.randperm(100, generator=generator) if shuffle else torch.arange(100)
    places = torch.arange(96).view(-1, 12)
    if repeats > 1:
        places = places.gather(1, (places % repeats).argsort(dim=1, stable=True))
    places = places.flatten()[24:][1::2]
    expected = order[places // repeats]
    sampler = GlobalBatchSampler(range(100), 12, 3, shuffle, repeats, draws=1)
    sampler.rank, sampler.world_size = 1, 2
    sampler.set_epoch(1)
    sampler.start = 2
    assert list(sampler) == list(zip(expected.tolist(), seeds[expected, places % repeats].tolist()))


@pytest.mark.parametrize("draws", [1, 2])
def test_without_repeats_no_sample_comes_twice(draws):
    sampler = GlobalBatchSampler(range(100), 12, seed=3, draws=draws)
    plain = list(sampler)
    assert len({position for position, _ in plain}) == len({seed for _, seed in plain}) == 96
    assert [position for position, _ in plain] != sorted(position for position, _ in plain)


def test_what_is_computed_together_is_what_it_is_by_itself(monkeypatch):
    together = batches(size=10)
    monkeypatch.setattr("crate_mm.datasets.sampler.AT_ONCE", 30)
    assert batches(size=10) == together


@pytest.mark.parametrize("size", [12, 8, 10])  # of which 3 divides one
def test_every_image_comes_three_times_with_seeds_of_its_own(size):
    found = [pair for (batch,) in batches(size) for pair in batch]
    assert len(found) == 100 // size * size, "the epoch is as long as without"
    images = Counter(position for position, _ in found)
    times = sorted(images.values())
    assert times[1:] == [3] * (len(times) - 1)
    assert times[0] == (len(found) - 1) % 3 + 1
    assert len({seed for _, seed in found}) == len(found)


def test_a_global_batch_is_written_out():
    """Batches of 8 of the order a, b, c, ...: the repeats of an image that stand together are set apart."""
    first, second = (tuple(position for position, _ in batch) for (batch,) in batches(8)[:2])
    a, b, c, *_ = first
    assert first == (a, b, c, a, b, c, a, b)
    d, e, f, *_ = second
    assert second == (d, e, f, d, e, c, d, e)


@pytest.mark.parametrize(("shuffle", "repeats"), [(True, 3), (True, 1), (False, 1)])
@pytest.mark.parametrize("world_size", [2, 5, 7, 12])
def test_the_number_of_processes_changes_no_global_batch(world_size, shuffle, repeats):
    options = dict(shuffle=shuffle, repeats=repeats)
    for (one,), several in zip(batches(**options), batches(world_size=world_size, **options), strict=True):
        dealt = [pair for pairs in itertools.zip_longest(*several) for pair in pairs if pair]
        assert dealt == one


def test_an_image_is_not_beside_itself():
    for parts in (*batches(), *batches(world_size=2), *batches(10)):
        for part in parts:
            positions = [position for position, _ in part]
            assert all(a != b for a, b in itertools.pairwise(positions))


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_an_epoch_goes_on_where_it_stopped(world_size):
    assert batches(start=3, world_size=world_size) == batches(world_size=world_size)[3:]


def test_epochs_see_other_images_with_other_seeds():
    one, other = ({pair for (batch,) in batches(epoch=e) for pair in batch} for e in (1, 2))
    images = [{position for position, _ in pairs} for pairs in (one, other)]
    assert [len(each) for each in images] == [32, 32]
    assert images[0] != images[1]
    assert not one & other, "an image of both epochs has other seeds"


def test_repeats_are_augmented_differently():
    pixels = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8)
    data = ClassificationDataset([(image, 0) for image in pixels], [dict(type="RandomCrop", size=8)])
    seen: dict[int, list[torch.Tensor]] = {}
    for index in GlobalBatchSampler(data, 30, seed=0, repeats=3):
        seen.setdefault(index[0], []).append(data[index]["inputs"])
    assert {len(crops) for crops in seen.values()} == {3}
    assert all(not torch.equal(*crops[:2]) for crops in seen.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *((dict(repeats=n), "repeats must be an integer from 1 to half of .* 12") for n in (0, -1, 7, 1.5, "3", True)),
        (dict(repeats=3, shuffle=False), "repeats=3 needs shuffle=True"),
        (dict(global_batch_size=2048), "global_batch_size 2048 is more than the 100 training samples"),
        *((dict(draws=v), "there is no version .*: this crate_mm has 1 and 2") for v in (0, 3, "2", True, None, [1])),
    ],
)
def test_a_sampler_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GlobalBatchSampler(range(100), **{"global_batch_size": 12, **options})


def test_a_config_asks_for_it_in_one_setting():
    cfg = resolve_config(load_config("debug", {"train_dataloader.sampler.repeats": 3}), world_size=1)
    assert cfg.train_dataloader.sampler == dict(type="GlobalBatchSampler", global_batch_size=128, repeats=3)
