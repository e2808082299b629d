"""Sampler of global batches that are the same for any number of processes."""

from collections.abc import Iterator

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Dataset

from ..registry import DATA_SAMPLERS
from .base import ResumableSampler
from .draws import DRAWS, NEWEST

AT_ONCE = 2**16  # samples, over all processes, that are computed at a time


@DATA_SAMPLERS.register_module()
class GlobalBatchSampler(ResumableSampler):
    """Sampler of ``(position, seed)`` from shuffled, full global batches, distributed over the processes.

    The i-th global batch of an epoch has the same samples and seeds for any number of processes, so that runs on
    different numbers of processes take the same steps. Samples after the last full batch are dropped; they differ in
    each epoch. Order and seeds are computed on demand, in memory that does not grow with the dataset.

    ``repeats`` is repeated augmentation (Hoffer et al., CVPR 2020; Berman et al., arXiv 1902.05509) as in DeiT: each
    image is drawn ``repeats`` times in a row, with different seeds. The epoch keeps its length, so it contains fewer
    images. Each global batch is then sorted, all first repeats before all second repeats, so that an image is not
    adjacent to itself when neighbors are mixed.

    Args:
        dataset: anything with a length.
        global_batch_size: samples per optimization step, over all processes.
        seed: seed of the run (default: drawn at random, the same for all processes).
        shuffle: draw a new order in each epoch; else keep the dataset's order.
        repeats: number of times that an image occurs in an epoch; recipes with repeated augmentation use 3.
        draws: shuffle version, see ``draws.py``; a resumed run keeps its version.

    Raises:
        ValueError: the dataset is smaller than one global batch; ``repeats`` is not an integer from 1 to half of that
            batch, or is more than 1 without ``shuffle`` (each epoch would have the same images); or ``draws`` is
            unknown.
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
                f"set --cfg-options global_batch_size={len(dataset)}, or less for more steps per epoch"
            )
        if (
            not isinstance(repeats, int)
            or isinstance(repeats, bool)
            or not 1 <= repeats <= max(global_batch_size // 2, 1)
        ):
            raise ValueError(
                f"repeats must be an integer from 1 to half of the global batch of {global_batch_size}, got {repeats!r}"
            )
        if repeats > 1 and not shuffle:
            raise ValueError(f"repeats={repeats} needs shuffle=True: each epoch would see the same images otherwise")
        self.repeats, self.draws = repeats, draws
        self.dataset_size = len(dataset)
        self.seed = sync_random_seed() if seed is None else seed
        self.shuffle = shuffle
        self.epoch = 0
        self.start = 0

    @property
    def draws(self) -> int:
        """Shuffle version; setting an unknown version raises ``ValueError``."""
        return self._draws

    @draws.setter
    def draws(self, version: int) -> None:
        if not isinstance(version, int) or isinstance(version, bool) or version not in DRAWS:
            known = " and ".join(map(str, DRAWS))
            raise ValueError(f"there is no version {version!r} of the sampler's draws: this crate_mm has {known}")
        self._draws = version

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        draws = DRAWS[self.draws](self.dataset_size, self.repeats, self.seed, self.epoch, self.shuffle)
        at_once = max(AT_ONCE // self.global_batch_size, 1)
        for first in range(self.start, self.num_batches, at_once):
            slots = self._slots(first, min(first + at_once, self.num_batches))
            positions = draws.order(slots // self.repeats)
            seeds = draws.seeds(positions, slots % self.repeats)
            yield from zip(positions.tolist(), seeds.tolist())

    def _slots(self, first: int, end: int) -> np.ndarray:
        """Return this process's slots in the batches ``first`` to ``end - 1``."""
        batches = np.arange(first * self.global_batch_size, end * self.global_batch_size)
        batches = batches.reshape(-1, self.global_batch_size)
        if self.repeats > 1:
            order = (batches % self.repeats).argsort(axis=1, kind="stable")
            batches = np.take_along_axis(batches, order, axis=1)
        return batches[:, self.rank :: self.world_size].flatten()

    def __len__(self) -> int:
        return self.num_batches * len(range(self.rank, self.global_batch_size, self.world_size))
