"""Contracts of a dataset, of a source of images and of a sampler.

User classes may inherit from these contracts. ``dataset_of`` and ``source_of`` adapt any other map-style dataset or
source, so that all other code uses only the contracts.

Shapes: C channels, H x W pixels of an image, N tokens of a window.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..io.files import home

Index = int | tuple[int, int]  # a position, or (position, seed) in training
IGNORED_TOKEN = -100  # label of a token that is not counted: PyTorch's default ignore_index
IGNORED_PIXEL = 255  # label of mask pixels that count neither in the loss nor in the metrics


class Field(NamedTuple):
    """One tensor or number of a sample; a letter in the shape stands for a length that varies between samples."""

    dtype: torch.dtype
    shape: tuple[int | str, ...] = ()

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} of shape ({', '.join(map(str, self.shape))})"


IMAGE = Field(torch.uint8, ("C", "H", "W"))
NUMBER = Field(torch.int64)


class SampleDataset(Dataset, ABC):
    """A map-style dataset of samples: dicts of tensors, numbers, strings, or lists of tensors.

    A dataset that reads files replaces an unreadable sample by another one. Its samples have two more entries:
    ``unreadable``, the position of the replaced sample or -1, and ``unreadable_reason``, the error message or ''. The
    ``UnreadableImages`` hook counts the replaced samples.

    Attributes:
        classes: class names in the order of the labels, or None.
        max_unreadable: number of unreadable samples up to which a run continues.
    """

    classes: Sequence[str] | None = None
    max_unreadable: float = math.inf

    @property
    @abstractmethod
    def spec(self) -> dict[str, Field | list[Field]] | None:
        """Entries of a sample; None if samples are not dicts."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: Index) -> dict[str, Any]:
        """Return the sample at a position; for a pair (position, seed), the seed determines all randomness."""

    def labels(self) -> Sequence[int] | None:
        """Return the label of every sample without reading the samples, or None if the labels are unknown."""
        return None

    def largest_id(self) -> int | None:
        """Return the largest token ID of the samples, or None if it is unknown or the samples are not tokens."""
        return None

    def describe(self, position: int) -> str:
        """Return the name of a sample for messages, such as its file."""
        return f"sample {position}"

    def check(self) -> None:
        """Raise ``ValueError`` if the samples cannot be used. Called before the first step; may read a sample."""

    @property
    def metainfo(self) -> dict[str, Any]:
        """Dataset information that checkpoints store. The name ``metainfo`` is MMEngine's."""
        return {"classes": self.classes}


class Source(ABC):
    """Images by position, as pairs (PIL image, label).

    Attributes:
        classes: class names in the order of the labels, or None.
        targets: the label of every image, or None if the labels are unknown before the images are read.
        encoded: whether ``read`` returns encoded images.
        named_by_folder: whether results identify the data by folder, so that two folders count as two datasets.
        drawing: name of the function in ``extras/report/assets/pixels.js`` that turns a drawing into an image like
            those of the source; None if there is no such function.
    """

    classes: Sequence[str] | None = None
    targets: Sequence[int] | None = None
    encoded: bool = False
    named_by_folder: bool = False
    drawing: str | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return an image and its label, -1 for an image without a label."""

    @property
    def name(self) -> str:
        """Name of the source's class, for messages."""
        return type(self).__name__

    def path(self, index: int) -> str:
        """Return an image's file, or its position if the source has no file names."""
        return f"sample {index} of {self.name}"

    def read(self, index: int) -> tuple[bytes, int]:
        """Return an encoded image and its label, if the source is ``encoded``."""
        raise NotImplementedError(f"{self.name} has no encoded images")


class ResumableSampler(Sampler):
    """A sampler that can start within an epoch, so that a run can resume there.

    Attributes:
        seed: seed of the order; the Runner sets it to the run's seed.
        start: index in the epoch of the first batch that ``__iter__`` yields.
        draws: shuffle version, which defines the order and the seeds and is stored in checkpoints; None if the sampler
            has no versions.
    """

    seed: int = 0
    start: int = 0
    draws: int | None = None


def data_folder(root: Any, content: str) -> str:
    """Return a source's ``root`` with ``~`` expanded; raise ``ValueError`` if it is None: ``data_root`` is not set.

    Args:
        root: path of a folder.
        content: description of the expected folder, for the message.
    """
    if root is None:
        raise ValueError(f"data_root is not set: give {content}")
    return home(root)


def samples_in(batch: dict[str, Any]) -> int:
    """Return the number of samples of a batch: the length of its tensors, or of its first entry if it has no tensor."""
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    return len((tensors or list(batch.values()))[0])


def draws_of(sampler: Any) -> int | None:
    """Return a sampler's shuffle version, or None for a sampler without versions."""
    return sampler.draws if isinstance(sampler, ResumableSampler) else None


def dataset_of(dataset: Any) -> SampleDataset:
    """Return a loader's dataset as a ``SampleDataset``, adapted if it is of another class."""
    return dataset if isinstance(dataset, SampleDataset) else ForeignDataset(dataset)


def source_of(source: Any) -> Source:
    """Return a map-style dataset of (image, label) as a ``Source``, adapted if it is of another class."""
    return source if isinstance(source, Source) else ForeignSource(source)


def require_images(dataset: Any, split: str, note: str = "") -> None:
    """Raise ``ValueError`` unless the samples of a loader's dataset contain images.

    Args:
        dataset: dataset of the loader.
        split: 'train', 'val' or 'test', for the message.
        note: appended to the message if the dataset is a source.
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
    """Adapter for map-style datasets of other classes, such as MMEngine's or a user's."""

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
    """Adapter for map-style datasets of (image, label) of other classes, such as torchvision's or a user's."""

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
    """Return a foreign object's ``classes`` if they are names: some datasets store the number of classes there."""
    return list(classes) if isinstance(classes, Iterable) and not isinstance(classes, str) else None


def _labels(foreign: Any) -> Sequence[int] | None:
    """Return a foreign object's labels, under one of torchvision's attribute names, if there is one per sample."""
    for name in ("targets", "labels", "_labels"):
        labels = getattr(foreign, name, None)
        if isinstance(labels, Sized) and not isinstance(labels, str) and len(labels) == len(foreign):
            return labels
    return None
