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

    Raises:
        ValueError: the dataset is smaller than one global batch, or ``repeats`` is no number from 1 to half of that
            batch, or more than 1 without ``shuffle``, where an epoch would always see the same images.
    """

    def __init__(
        self,
        dataset: Dataset,
        global_batch_size: int,
        seed: int | None = None,
        shuffle: bool = True,
        repeats: int = 1,
    ) -> None:
        self.rank, self.world_size = get_dist_info()
        self.global_batch_size = global_batch_size
        self.num_samples = len(dataset) // global_batch_size * global_batch_size
        if self.num_samples == 0:
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
        self.repeats = repeats
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
        seeds = torch.randint(2**62, (self.dataset_size, self.repeats), generator=generator)
        if self.shuffle:
            order = torch.randperm(self.dataset_size, generator=generator)
        else:
            order = torch.arange(self.dataset_size)
        places = self._places()[self.start * self.global_batch_size :][self.rank :: self.world_size]
        mine = order[places // self.repeats]
        yield from zip(mine.tolist(), seeds[mine, places % self.repeats].tolist())

    def _places(self) -> torch.Tensor:
        """Places of the epoch's samples in the order with its repeats, batch by batch."""
        places = torch.arange(self.num_samples).view(-1, self.global_batch_size)
        if self.repeats > 1:
            apart = (places % self.repeats).argsort(dim=1, stable=True)
            places = places.gather(1, apart)
        return places.flatten()

    def __len__(self) -> int:
        return self.num_samples // self.world_size
