"""Preview a config's samples as the model sees them: augmented, erased and mixed. B is the batch size."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.runner import set_random_seed
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from ..config import defines_model, fill_from_data, resolve_config
from ..datasets.base import IGNORED_PIXEL, dataset_of
from ..engine.safety.seeding import iteration_seed
from ..io.untrusted import sanitized
from ..registry import DATA_SAMPLERS, DATASETS, MODELS


class PreviewSample(NamedTuple):
    """A sample as the model sees it in training or testing.

    Attributes:
        pixels: uint8 ``(C, H, W)``; after batch augmentation, the denormalized image.
        labels: pairs (class, weight) in descending order of weight: one pair, or two for a mixed image. For an image
            with a mask, a weight is the class's fraction of the labeled pixels.
        position: index of the image in the dataset.
        path: path or name of the image.
        epoch: epoch from 1, or 0 outside of training.
        replaces: a note if the image replaces an unreadable one, or ''.
        mask: labels of the pixels, uint8 ``(H, W)``, or None.
    """

    pixels: Tensor
    labels: list[tuple[int, float]]
    position: int
    path: str
    epoch: int = 0
    replaces: str = ""
    mask: Tensor | None = None


class SamplePreview:
    """Samples of a config's split.

    Training samples come in the order and with the seeds of a run with one process on a CPU. ``batch_augments`` is
    applied as in this run, to the first micro-batch of each step. Later micro-batches are omitted, because their
    augmentation depends on the model's random draws for earlier micro-batches.

    Args:
        cfg: a user's config. If it defines no model, batches are not augmented.
        split: 'train', 'val' or 'test'.

    Raises:
        ValueError: the config has no data of this split, or the model does not match the data.
    """

    def __init__(self, cfg: Config, split: str = "train") -> None:
        if not cfg.get(f"{split}_dataloader"):
            raise ValueError(f"the config has no {split}_dataloader")
        has_model = defines_model(cfg)
        if split == "train":
            cfg, _ = fill_from_data(cfg, training=True)
        resolved = resolve_config(cfg, world_size=1, with_model=has_model)
        loader = resolved[f"{split}_dataloader"]
        self.dataset: Dataset = DATASETS.build(loader.dataset)
        self.split, self.task, self.sampler = split, None, None
        if split != "train":
            return
        self.seed = (resolved.get("randomness") or {}).get("seed")
        if self.seed is None:
            raise ValueError("the config has no randomness.seed, so each run draws different samples: set it")
        self.sampler = DATA_SAMPLERS.build(
            {**loader.sampler, "dataset": self.dataset, "seed": self._sampler_seed(loader)}
        )
        self.batch_size, self.micro_batches = loader.batch_size, resolved.train_cfg.micro_batches
        if has_model and resolved.model.get("batch_augments"):
            self.task = MODELS.build(resolved.model).train()
            self.task.check_data(self.dataset, "train")

    def _sampler_seed(self, loader: dict) -> int:
        seed = loader.sampler.get("seed")
        return self.seed if seed is None else seed

    @property
    def classes(self) -> list[str] | None:
        """Class names, or None if the data has no classes."""
        return dataset_of(self.dataset).classes

    @property
    def mixes(self) -> bool:
        """Whether the model augments batches (``batch_augments``)."""
        return self.task is not None

    def epoch_samples(self, number: int, epoch: int = 1) -> Iterator[PreviewSample]:
        """Yield the first samples of a training epoch (from 1), or samples spread evenly over another split."""
        if self.sampler is None:
            total = len(self.dataset)
            for step in range(min(number, total)):
                yield self._plain(step * total // min(number, total), 0)
            return
        self.sampler.set_epoch(epoch - 1)
        indices, step = iter(self.sampler), 0
        usable = self.batch_size // self.micro_batches if self.mixes else self.batch_size
        while number > 0 and (batch := list(islice(indices, self.batch_size))):
            rows = range(min(usable, number))
            yield from self._of_batch(batch, rows, epoch, step)
            number, step = number - len(rows), step + 1

    def sample_by_epoch(self, position: int, number: int, epoch: int = 1) -> Iterator[PreviewSample]:
        """Yield one training sample in several epochs, from ``epoch`` on; epochs without it are skipped.

        Raises:
            ValueError: the dataset has no such position, or the split is not 'train'.
        """
        if self.sampler is None:
            raise ValueError(f"the {self.split} data is the same in every epoch")
        if not 0 <= position < len(self.dataset):
            raise ValueError(f"sample {position} does not exist: the data has {len(self.dataset)} samples, from 0")
        missed = 0
        while number > 0 and missed < 100:
            self.sampler.set_epoch(epoch - 1)
            indices = list(self.sampler)
            slots = [slot for slot, index in enumerate(indices) if self._position(index) == position]
            usable = self.batch_size // self.micro_batches if self.mixes else self.batch_size
            slots = [slot for slot in slots if slot % self.batch_size < usable][:number]
            for slot in slots:
                step, row = divmod(slot, self.batch_size)
                batch = indices[step * self.batch_size : (step + 1) * self.batch_size]
                yield from self._of_batch(batch, [row], epoch, step)
            number, missed, epoch = number - len(slots), 0 if slots else missed + 1, epoch + 1

    def _of_batch(self, batch: list, rows: range | list[int], epoch: int, step: int) -> Iterator[PreviewSample]:
        if not self.mixes:
            yield from (self._plain(batch[row], epoch) for row in rows)
            return
        size = self.batch_size // self.micro_batches
        # An image is mixed with the previous one. Only the number of the other images matters, so zeros replace them.
        needed = sorted({index % size for row in rows for index in (row, row - 1)})
        samples = {row: self._sample(batch[row]) for row in needed}
        first = samples[needed[0]]["inputs"]
        inputs, labels = first.new_zeros(size, *first.shape), torch.zeros(size, dtype=torch.long)
        for row, sample in samples.items():
            inputs[row], labels[row] = sample["inputs"], sample["labels"]
        steps = len(self.sampler) // self.batch_size
        set_random_seed(iteration_seed(self.seed, (epoch - 1) * steps + step, 0))
        inputs = self.task.data_preprocessor({"inputs": inputs}, training=True)["inputs"]
        images, labels = self.task.batch_augments(inputs, labels)
        for row in rows:
            pixels = self.task.data_preprocessor.denormalize(images[row : row + 1])[0]
            yield self._preview(samples[row], pixels, _label_weights(labels[row]), epoch)

    def _plain(self, index: int | tuple[int, int], epoch: int) -> PreviewSample:
        sample = self._sample(index)
        label = sample.get("labels", -1)
        if isinstance(label, Tensor) and label.ndim == 2:
            counts = torch.bincount(label[label != IGNORED_PIXEL].flatten().int())
            pixels = v2.functional.resize(sample["inputs"], list(label.shape))  # masks may keep their own size
            return self._preview(sample, pixels, _label_weights(counts / counts.sum()), epoch)._replace(mask=label)
        return self._preview(sample, sample["inputs"], [(int(label), 1.0)] if label >= 0 else [], epoch)

    def _preview(self, sample: dict, pixels: Tensor, labels: list[tuple[int, float]], epoch: int) -> PreviewSample:
        position, requested = sample.get("sample_idx", -1), sample.get("unreadable", -1)
        describe = dataset_of(self.dataset).describe
        replaces = f"replaces {describe(requested)}, which cannot be read" if requested >= 0 else ""
        return PreviewSample(pixels, labels, position, describe(position), epoch, replaces)

    def _sample(self, index: int | tuple[int, int]) -> dict:
        sample = self.dataset[index]
        if not isinstance(sample, dict) or not isinstance(sample.get("inputs"), Tensor):
            raise ValueError(f"the samples of {type(self.dataset).__name__} have no image tensor under 'inputs'")
        inputs = sample["inputs"]
        if inputs.dtype != torch.uint8 or inputs.ndim != 3:
            name = sanitized(dataset_of(self.dataset).describe(sample.get("sample_idx", -1)))
            dtype = str(inputs.dtype).removeprefix("torch.")
            raise ValueError(
                f"{name} is not an image: expected uint8 of shape (C, H, W), got {dtype} of {tuple(inputs.shape)}"
            )
        return sample

    @staticmethod
    def _position(index: int | tuple[int, int]) -> int:
        return index[0] if isinstance(index, tuple) else index


def _label_weights(label: Tensor) -> list[tuple[int, float]]:
    """Return a class index, or class probabilities, as pairs (class, weight) with positive weight."""
    if label.ndim == 0:
        return [(int(label), 1.0)]
    weights = [(index, weight) for index, weight in enumerate(label.tolist()) if weight > 0]
    return sorted(weights, key=lambda pair: -pair[1])
