"""What training sees: a config's samples as an epoch gives them, augmented, erased and mixed. B samples of a batch."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.runner import set_random_seed
from torch import Tensor
from torch.utils.data import Dataset

from ...config import defines_model, resolve_config
from ...datasets.base import dataset_of
from ...registry import DATA_SAMPLERS, DATASETS, MODELS
from ..safety.seeding import iteration_seed


class PreviewSample(NamedTuple):
    """A sample as a model is trained, or tested, on it.

    Args:
        pixels: uint8 ``(C, H, W)``; of a batch's augmentation the normalised image, brought back.
        labels: pairs (class, share of the label), the largest first: one, or of a mixed image two.
        position: in the dataset, of the image itself; ``path`` names it.
        epoch: from 1; 0 outside of training.
        replaces: why another image stands in the place of the one that was asked for, or ''.
    """

    pixels: Tensor
    labels: list[tuple[int, float]]
    position: int
    path: str
    epoch: int = 0
    replaces: str = ""


class SamplePreview:
    """The samples of a config's split.

    Those of training come in the order and with the seeds of a run of one process on a CPU: the epoch's first ones are
    those of its first step. What the model does to a batch (``batch_augments``) is done as at that step, to the first
    of its micro-batches; what happens to further micro-batches depends on what the model draws before, and they are
    left out.

    Args:
        cfg: a user's config. It may leave its model to a checkpoint; its batches are then not augmented.
        split: 'train', 'val' or 'test'.

    Raises:
        ValueError: there is no such data, or the model does not fit it.
    """

    def __init__(self, cfg: Config, split: str = "train") -> None:
        if not cfg.get(f"{split}_dataloader"):
            raise ValueError(f"the config has no {split}_dataloader")
        whole = defines_model(cfg)
        ready = resolve_config(cfg, world_size=1, with_model=whole)
        loader = ready[f"{split}_dataloader"]
        self.dataset: Dataset = DATASETS.build(loader.dataset)
        self.split, self.task, self.sampler = split, None, None
        if split != "train":
            return
        self.seed = (ready.get("randomness") or {}).get("seed")
        if self.seed is None:
            raise ValueError("the config has no randomness.seed, so that each run sees other samples: give one")
        self.sampler = DATA_SAMPLERS.build(
            {**loader.sampler, "dataset": self.dataset, "seed": self._sampler_seed(loader)}
        )
        self.batch_size, self.parts = loader.batch_size, ready.train_cfg.micro_batches
        if whole and ready.model.get("batch_augments"):
            self.task = MODELS.build(ready.model).train()
            self.task.check_data(self.dataset, "train")

    def _sampler_seed(self, loader: dict) -> int:
        own = loader.sampler.get("seed")
        return self.seed if own is None else own

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes, where the data has such."""
        return dataset_of(self.dataset).classes

    @property
    def mixes(self) -> bool:
        """Whether the model augments the batches."""
        return self.task is not None

    def epoch_samples(self, number: int, epoch: int = 1) -> Iterator[PreviewSample]:
        """The first samples of an epoch of training, counted from 1, or samples of another split, spread over it."""
        if self.sampler is None:
            total = len(self.dataset)
            for step in range(min(number, total)):
                yield self._plain(step * total // min(number, total), 0)
            return
        self.sampler.set_epoch(epoch - 1)
        indices, step = iter(self.sampler), 0
        usable = self.batch_size // self.parts if self.mixes else self.batch_size
        while number > 0 and (batch := list(islice(indices, self.batch_size))):
            rows = range(min(usable, number))
            yield from self._of_batch(batch, rows, epoch, step)
            number, step = number - len(rows), step + 1

    def sample_by_epoch(self, position: int, number: int, epoch: int = 1) -> Iterator[PreviewSample]:
        """One sample of training in several epochs, from an epoch on; epochs that leave it out are passed over.

        Raises:
            ValueError: there is no such position.
        """
        if self.sampler is None:
            raise ValueError(f"the {self.split} data is the same in every epoch")
        if not 0 <= position < len(self.dataset):
            raise ValueError(f"sample {position} is not there: the data has {len(self.dataset)}, counted from 0")
        missed = 0
        while number > 0 and missed < 100:
            self.sampler.set_epoch(epoch - 1)
            indices = list(self.sampler)
            places = [place for place, index in enumerate(indices) if self._position(index) == position]
            usable = self.batch_size // self.parts if self.mixes else self.batch_size
            places = [place for place in places if place % self.batch_size < usable][:number]
            for place in places:
                step, row = divmod(place, self.batch_size)
                batch = indices[step * self.batch_size : (step + 1) * self.batch_size]
                yield from self._of_batch(batch, [row], epoch, step)
            number, missed, epoch = number - len(places), 0 if places else missed + 1, epoch + 1

    def _of_batch(self, batch: list, rows: range | list[int], epoch: int, step: int) -> Iterator[PreviewSample]:
        if not self.mixes:
            yield from (self._plain(batch[row], epoch) for row in rows)
            return
        size = self.batch_size // self.parts
        # An image is mixed with the one before it. Nothing depends on the others but their number.
        needed = sorted({place % size for row in rows for place in (row, row - 1)})
        loaded = {row: self._sample(batch[row]) for row in needed}
        first = loaded[needed[0]]["inputs"]
        inputs, labels = first.new_zeros(size, *first.shape), torch.zeros(size, dtype=torch.long)
        for row, sample in loaded.items():
            inputs[row], labels[row] = sample["inputs"], sample["labels"]
        steps = len(self.sampler) // self.batch_size
        set_random_seed(iteration_seed(self.seed, (epoch - 1) * steps + step, 0))
        inputs = self.task.data_preprocessor({"inputs": inputs}, training=True)["inputs"]
        images, labels = self.task.batch_augments(inputs, labels)
        for row in rows:
            pixels = self.task.data_preprocessor.denormalize(images[row : row + 1])[0]
            yield self._seen(loaded[row], pixels, _shares(labels[row]), epoch)

    def _plain(self, index: int | tuple[int, int], epoch: int) -> PreviewSample:
        sample = self._sample(index)
        label = sample.get("labels", -1)
        return self._seen(sample, sample["inputs"], [(int(label), 1.0)] if label >= 0 else [], epoch)

    def _seen(self, sample: dict, pixels: Tensor, labels: list[tuple[int, float]], epoch: int) -> PreviewSample:
        position, asked = sample.get("sample_idx", -1), sample.get("unreadable", -1)
        describe = dataset_of(self.dataset).describe
        replaces = f"in the place of {describe(asked)}, which cannot be read" if asked >= 0 else ""
        return PreviewSample(pixels, labels, position, describe(position), epoch, replaces)

    def _sample(self, index: int | tuple[int, int]) -> dict:
        sample = self.dataset[index]
        if not isinstance(sample, dict) or not isinstance(sample.get("inputs"), Tensor):
            raise ValueError(f"{type(self.dataset).__name__} gives no samples with images under 'inputs'")
        return sample

    @staticmethod
    def _position(index: int | tuple[int, int]) -> int:
        return index[0] if isinstance(index, tuple) else index


def _shares(label: Tensor) -> list[tuple[int, float]]:
    """A label, a class or probabilities, as pairs (class, share) of those that have one."""
    if label.ndim == 0:
        return [(int(label), 1.0)]
    shares = [(number, share) for number, share in enumerate(label.tolist()) if share > 0]
    return sorted(shares, key=lambda pair: -pair[1])
