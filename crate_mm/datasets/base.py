"""What a loader samples from: the contracts of a dataset, of a source of images and of a sampler.

A class of a user's own may inherit from them. Any other map-style dataset or source is adapted by ``dataset_of`` and
``source_of``, the only readers of its attributes: everything behind them asks the contract.

Shapes: C channels, H x W pixels of an image, N tokens of a window.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

Index = int | tuple[int, int]  # a position, or (position, seed) in training


class Field(NamedTuple):
    """One tensor or number of a sample; a letter in the shape stands for a length that samples do not share."""

    dtype: torch.dtype
    shape: tuple[int | str, ...] = ()

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} of shape ({', '.join(map(str, self.shape))})"


IMAGE = Field(torch.uint8, ("C", "H", "W"))
NUMBER = Field(torch.int64)


class SampleDataset(Dataset, ABC):
    """A map-style dataset of samples: dicts of tensors, numbers, strings, or lists of tensors.

    A dataset that reads files adds ``unreadable``, the position of the sample that cannot be read and is replaced by
    another, else -1; and ``unreadable_reason``, a sentence, else ''. The ``UnreadableImages`` hook counts them.

    Attributes:
        classes: class names in the order of the labels, or None.
        max_unreadable: how many samples may be unreadable before a run stops.
    """

    classes: Sequence[str] | None = None
    max_unreadable: float = math.inf

    @property
    @abstractmethod
    def spec(self) -> dict[str, Field | list[Field]] | None:
        """The entries of a sample; None where a sample is no dict."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: Index) -> dict[str, Any]:
        """Return the sample at a position; of a pair (position, seed) all that is random follows from the seed."""

    def labels(self) -> Sequence[int] | None:
        """Return the label of every sample without reading the samples, or None where it is not known."""
        return None

    def describe(self, position: int) -> str:
        """Return the name of a sample, for messages: its file, say."""
        return f"sample {position}"

    @property
    def metainfo(self) -> dict[str, Any]:
        """What a checkpoint keeps about the data, under MMEngine's name for it."""
        return {"classes": self.classes}


class Source(ABC):
    """Images by position, as pairs (PIL image, label).

    Attributes:
        classes: class names in the order of the labels, or None.
        targets: the label of every image, or None where it is not known without reading images.
        encoded: whether ``read`` gives encoded images.
        named_by_folder: results name the data by its folder: two folders are two datasets.
    """

    classes: Sequence[str] | None = None
    targets: Sequence[int] | None = None
    encoded: bool = False
    named_by_folder: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return an image and its label, -1 where it has none."""

    @property
    def name(self) -> str:
        """The name of the source's class, for messages."""
        return type(self).__name__

    def path(self, index: int) -> str:
        """Return an image's file, or its position where the source names no files."""
        return f"sample {index} of {self.name}"

    def read(self, index: int) -> tuple[bytes, int]:
        """Return an encoded image and its label, if the source is ``encoded``."""
        raise NotImplementedError(f"{self.name} has no encoded images")


class ResumableSampler(Sampler):
    """A sampler that can begin within an epoch, so that a run can resume there.

    Attributes:
        seed: of the order; the Runner sets it to the run's.
        start: the batch of the epoch that the next iteration begins with.
        draws: the version of the order and the seeds, which checkpoints name; None without versions.
    """

    seed: int = 0
    start: int = 0
    draws: int | None = None


def samples_in(batch: dict[str, Any]) -> int:
    """Return the number of samples of a batch: the length of its tensors, or, without tensors, of its first entry."""
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    return len((tensors or list(batch.values()))[0])


def draws_of(sampler: Any) -> int | None:
    """Return the version of a sampler's draws, or None for a sampler without versions."""
    return sampler.draws if isinstance(sampler, ResumableSampler) else None


def dataset_of(dataset: Any) -> SampleDataset:
    """Return the contract of a loader's dataset: itself, or what is known of another kind of dataset."""
    return dataset if isinstance(dataset, SampleDataset) else ForeignDataset(dataset)


def source_of(source: Any) -> Source:
    """Return the contract of a source: itself, or what is known of another map-style dataset of (image, label)."""
    return source if isinstance(source, Source) else ForeignSource(source)


def require_images(dataset: Any, split: str, note: str = "") -> None:
    """Raise ``ValueError`` unless a loader's dataset gives samples with images.

    Args:
        dataset: of the loader.
        split: 'train', 'val' or 'test', for the message.
        note: ends the advice for a source in the place of a dataset.
    """
    spec, kind = dataset_of(dataset).spec, type(dataset).__name__
    if spec is None:
        raise ValueError(
            f"{split}_dataloader.dataset of type {kind!r} has no source: write dict(type='ClassificationDataset', "
            f"source=dict(type={kind!r}, ...), transforms=[...]){note}"
        )
    inputs = spec.get("inputs")
    if isinstance(dataset, SampleDataset) and (not isinstance(inputs, Field) or len(inputs.shape) != 3):
        kinds = "; ".join(map(str, inputs)) if isinstance(inputs, list) else inputs
        raise ValueError(f"{split}_dataloader.dataset of type {kind!r} gives {kinds} as inputs: expected {IMAGE}")


class ForeignDataset(SampleDataset):
    """A map-style dataset that does not know the contract: MMEngine's, or a user's own."""

    def __init__(self, dataset: Any) -> None:
        self.foreign = dataset
        self._metainfo = getattr(dataset, "metainfo", None) or {}
        self.classes = _names(self._metainfo.get("classes") or getattr(dataset, "classes", None))
        self.max_unreadable = getattr(dataset, "max_unreadable", math.inf)
        self._path = getattr(dataset, "path", None)

    @property
    def spec(self) -> dict[str, Field] | None:
        sample = self.foreign[0]
        if not isinstance(sample, dict):
            return None
        tensors = {key: value for key, value in sample.items() if isinstance(value, torch.Tensor)}
        return {key: Field(value.dtype, tuple(value.shape)) for key, value in tensors.items()}

    def __len__(self) -> int:
        return len(self.foreign)

    def __getitem__(self, index: Index) -> dict[str, Any]:
        return self.foreign[index]

    def labels(self) -> Sequence[int] | None:
        return _labels(self.foreign)

    def describe(self, position: int) -> str:
        return self._path(position) if self._path else super().describe(position)

    @property
    def metainfo(self) -> dict[str, Any]:
        return self._metainfo


class ForeignSource(Source):
    """A map-style dataset of pairs (image, label) that does not know the contract: torchvision's, or a user's own."""

    def __init__(self, source: Any) -> None:
        self.foreign = source
        classes = _names(getattr(source, "classes", None))
        count = getattr(source, "num_classes", None)
        self.classes = list(map(str, range(count))) if classes is None and count is not None else classes
        self._path, self._read = getattr(source, "path", None), getattr(source, "read", None)
        self.encoded = self._read is not None

    @property
    def targets(self) -> Sequence[int] | None:
        return _labels(self.foreign)

    @property
    def name(self) -> str:
        return type(self.foreign).__name__

    def __len__(self) -> int:
        return len(self.foreign)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.foreign[index]

    def path(self, index: int) -> str:
        return self._path(index) if self._path else super().path(index)

    def read(self, index: int) -> tuple[bytes, int]:
        return self._read(index) if self._read else super().read(index)


def _names(classes: Any) -> list | None:
    """Return class names, if a foreign object's ``classes`` are names: some have their number there."""
    return list(classes) if isinstance(classes, Iterable) and not isinstance(classes, str) else None


def _labels(foreign: Any) -> Sequence[int] | None:
    """Return a foreign object's labels, under the names that torchvision has for them, if each sample has one."""
    for name in ("targets", "labels", "_labels"):
        labels = getattr(foreign, name, None)
        if isinstance(labels, Sized) and not isinstance(labels, str) and len(labels) == len(foreign):
            return labels
    return None
