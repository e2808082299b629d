"""Which samples make up a global batch, whoever loads them."""

from collections.abc import Iterator

import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Dataset, Sampler

from ..registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class GlobalBatchSampler(Sampler):
    """Shuffled whole global batches, dealt out to the processes; yields pairs ``(position, seed)``.

    The i-th global batch of an epoch holds the same samples with the same seeds for any number of processes, which is
    what makes runs on different numbers of them take the same steps. The samples that are left over after the last
    whole batch are other ones each epoch.

    Args:
        dataset: anything with a length.
        global_batch_size: samples in one optimisation step, over all processes.
        seed: the run's seed; drawn, and shared by the processes, if not given.
        shuffle: draw a new order each epoch; otherwise the order is the dataset's.

    Raises:
        ValueError: the dataset is smaller than one global batch.
    """

    def __init__(self, dataset: Dataset, global_batch_size: int, seed: int | None = None, shuffle: bool = True) -> None:
        self.rank, self.world_size = get_dist_info()
        self.global_batch_size = global_batch_size
        self.num_samples = len(dataset) // global_batch_size * global_batch_size
        if self.num_samples == 0:
            raise ValueError(
                f"global_batch_size {global_batch_size} is more than the {len(dataset)} training samples: "
                "--cfg-options global_batch_size=N makes it smaller"
            )
        self.dataset_size = len(dataset)
        self.seed = sync_random_seed() if seed is None else seed
        self.shuffle = shuffle
        self.epoch = 0
        self.start = 0  # the batch of the epoch that the next iteration begins with

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and seeds the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # PyTorch's generator takes 32 bits: seed and epoch are mixed into them.
        mixed = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(mixed)
        seeds = torch.randint(2**62, (self.dataset_size,), generator=generator)
        if self.shuffle:
            order = torch.randperm(self.dataset_size, generator=generator)
        else:
            order = torch.arange(self.dataset_size)
        mine = order[self.start * self.global_batch_size : self.num_samples][self.rank :: self.world_size]
        yield from zip(mine.tolist(), seeds[mine].tolist())

    def __len__(self) -> int:
        return self.num_samples // self.world_size
