"""Load large batches in chunks that the training loop joins, and split batches into micro-batches."""

import inspect
import math
from collections.abc import Iterator
from functools import partial
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, default_collate

from ...datasets.base import samples_in
from ...registry import FUNCTIONS

MAX_CHUNK_SIZE = 256  # samples


class ChunkedBatchSampler:
    """Batch sampler that yields each batch as ``ceil(size / max_size)`` lists of indices, of almost equal sizes."""

    def __init__(self, batches: BatchSampler, max_size: int) -> None:
        self.batches, self.max_size = batches, max_size

    def __iter__(self) -> Iterator[list]:
        for batch in self.batches:
            chunks = math.ceil(len(batch) / self.max_size)
            ends = [len(batch) * chunk // chunks for chunk in range(chunks + 1)]
            yield from (batch[start:end] for start, end in pairwise(ends))


def chunk_loader(loader: DataLoader, max_size: int = MAX_CHUNK_SIZE) -> tuple[DataLoader, int]:
    """Return a loader that yields the same samples in the same order in chunks, and the number of chunks per batch.

    Without chunks, the first step of an epoch waits until one worker has built a whole batch, and shared memory holds
    two batches per worker: its size grows with the recipe's batch size.

    Args:
        loader: a loader of batches. It is returned unchanged if it has no workers or small batches, or if its chunks
            cannot be joined (custom collate function or batch sampler, or an iterable dataset).
        max_size: maximum number of samples in a chunk.
    """
    collate = loader.collate_fn.func if isinstance(loader.collate_fn, partial) else loader.collate_fn  # MMEngine's
    joinable = collate in (default_collate, FUNCTIONS.get("collate"))
    standard = type(loader.batch_sampler) is BatchSampler and not isinstance(loader.dataset, IterableDataset)
    if not joinable or not standard or loader.num_workers == 0 or loader.batch_size <= max_size:
        return loader, 1
    # Copy every setting that DataLoader has in this version of PyTorch.
    names = set(inspect.signature(DataLoader).parameters) - {"batch_size", "shuffle", "sampler", "drop_last"}
    settings = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    # prefetch_factor now counts chunks. Prefetch at least one batch, so that no worker waits for the end of a step.
    chunks = math.ceil(loader.batch_size / max_size)
    settings["prefetch_factor"] = max(loader.prefetch_factor or 2, math.ceil(chunks / loader.num_workers) + 1)
    settings["batch_sampler"] = ChunkedBatchSampler(loader.batch_sampler, max_size)
    return DataLoader(**settings), chunks


def join(chunks: list[Any]) -> Any:
    """Join the collated chunks of a batch into one batch of the same structure."""
    first = chunks[0]
    if len(chunks) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(chunks)
    if isinstance(first, dict):
        return {key: join([chunk[key] for chunk in chunks]) for key in first}
    if isinstance(first[0], (str, bytes)):
        return list(chain(*chunks))
    return [join(list(entries)) for entries in zip(*chunks)]  # lists or tuples of the samples


def split_batch(batch: dict[str, Any], num_micro_batches: int) -> list[dict[str, Any]]:
    """Split a batch of B samples into micro-batches whose sizes differ by at most one sample.

    Tensors ``(B, ...)`` and lists of B samples are split. Dicts, and lists of tensors ``(B, ...)`` (several views of
    the samples), are split entry by entry.

    Raises:
        ValueError: it is ambiguous whether a list contains samples or views.
    """
    if num_micro_batches == 1:
        return [batch]
    size = samples_in(batch)
    ends = [size * index // num_micro_batches for index in range(num_micro_batches + 1)]
    return [_slice(batch, start, end, size) for start, end in pairwise(ends)]


def _slice(value: Any, start: int, end: int, size: int) -> Any:
    if isinstance(value, dict):
        return {key: _slice(inner, start, end, size) for key, inner in value.items()}
    tensors = isinstance(value, (list, tuple)) and value and all(isinstance(v, Tensor) and v.ndim for v in value)
    if tensors and all(len(v) == size for v in value):
        if len(value) == size and value[0].ndim < 4:  # views of images have four dimensions
            raise ValueError(
                f"a list of {size} tensors {tuple(value[0].shape)} may hold {size} samples or {size} views of them: "
                "set another global_batch_size or max_batch_per_device"
            )
        return [view[start:end] for view in value]
    return value[start:end]
