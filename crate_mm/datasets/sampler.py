"""Which samples make up a global batch, whoever loads them."""

from collections.abc import Iterator

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Dataset

from ..registry import DATA_SAMPLERS
from .base import ResumableSampler
from .draws import DRAWS, NEWEST

AT_ONCE = 2**16  # samples, of all processes, whose draws are computed together


@DATA_SAMPLERS.register_module()
class GlobalBatchSampler(ResumableSampler):
    """Shuffled whole global batches, dealt out to the processes; yields pairs ``(position, seed)``.

    The i-th global batch of an epoch holds the same samples with the same seeds for any number of processes, which is
    what makes runs on different numbers of them take the same steps. The samples that are left over after the last
    whole batch are other ones each epoch. What is drawn is computed as it is needed, in memory that does not grow with
    the dataset.

    With ``repeats`` it is repeated augmentation (Hoffer et al., CVPR 2020; Berman et al., arXiv 1902.05509) as DeiT has
    it: every image of the order comes ``repeats`` times one after the other, each time with a seed of its own, and the
    epoch is as long as without, so that it sees that much fewer images. Within a global batch the first appearances of
    its images come first, then the second ones: an image is not beside itself, for what mixes neighbours.

    Args:
        dataset: anything with a length.
        global_batch_size: samples in one optimisation step, over all processes.
        seed: the run's seed; drawn, and shared by the processes, if not given.
        shuffle: draw a new order each epoch; otherwise the order is the dataset's.
        repeats: how often an image comes in an epoch, if it comes; recipes with repeated augmentation take 3.
        draws: the version of the order and the seeds, see ``draws.py``; a resumed run keeps that which it began with.

    Raises:
        ValueError: the dataset is smaller than one global batch, or ``repeats`` is no number from 1 to half of that
            batch, or more than 1 without ``shuffle``, where an epoch would always see the same images, or there is no
            such version of the draws.
    """

    def __init__(
        self,
        dataset: Dataset,
        global_batch_size: int,
        seed: int | None = None,
        shuffle: bool = True,
        repeats: int = 1,
        draws: int = NEWEST,
    ) -> None:
        self.rank, self.world_size = get_dist_info()
        self.global_batch_size = global_batch_size
        self.num_batches = len(dataset) // global_batch_size
        if self.num_batches == 0:
            raise ValueError(
                f"global_batch_size {global_batch_size} is more than the {len(dataset)} training samples: "
                "--cfg-options global_batch_size=N makes it smaller"
            )
        if (
            not isinstance(repeats, int)
            or isinstance(repeats, bool)
            or not 1 <= repeats <= max(global_batch_size // 2, 1)
        ):
            raise ValueError(
                f"repeats must be a whole number from 1 to half of the global batch of {global_batch_size}, "
                f"got {repeats!r}"
            )
        if repeats > 1 and not shuffle:
            raise ValueError(f"repeats={repeats} needs shuffle=True: each epoch would see the same images otherwise")
        self.repeats, self.draws = repeats, draws
        self.dataset_size = len(dataset)
        self.seed = sync_random_seed() if seed is None else seed
        self.shuffle = shuffle
        self.epoch = 0
        self.start = 0  # the batch of the epoch that the next iteration begins with

    @property
    def draws(self) -> int:
        """The version of the draws; setting it raises ``ValueError`` if there is no such version."""
        return self._draws

    @draws.setter
    def draws(self, version: int) -> None:
        if not isinstance(version, int) or isinstance(version, bool) or version not in DRAWS:
            known = " and ".join(map(str, DRAWS))
            raise ValueError(f"there is no version {version!r} of the sampler's draws: this crate_mm has {known}")
        self._draws = version

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and seeds the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        drawn = DRAWS[self.draws](self.dataset_size, self.repeats, self.seed, self.epoch, self.shuffle)
        at_once = max(AT_ONCE // self.global_batch_size, 1)
        for first in range(self.start, self.num_batches, at_once):
            slots = self._slots(first, min(first + at_once, self.num_batches))
            positions = drawn.order(slots // self.repeats)
            seeds = drawn.seeds(positions, slots % self.repeats)
            yield from zip(positions.tolist(), seeds.tolist())

    def _slots(self, first: int, end: int) -> np.ndarray:
        """This process's slots in the order with its repeats, in batches from ``epoch_samples`` to before ``end``."""
        batches = np.arange(first * self.global_batch_size, end * self.global_batch_size)
        batches = batches.reshape(-1, self.global_batch_size)
        if self.repeats > 1:
            apart = (batches % self.repeats).argsort(axis=1, kind="stable")
            batches = np.take_along_axis(batches, apart, axis=1)
        return batches[:, self.rank :: self.world_size].flatten()

    def __len__(self) -> int:
        return self.num_batches * len(range(self.rank, self.global_batch_size, self.world_size))
