"""Large batches, which a loader's workers build in pieces and the training loop puts together."""

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

MOST = 256  # samples in a piece


class ChunkedBatchSampler:
    """The batches of a sampler, each as ``ceil(size / most)`` lists of indices, of sizes that differ by one at most."""

    def __init__(self, batches: BatchSampler, most: int) -> None:
        self.batches, self.most = batches, most

    def __iter__(self) -> Iterator[list]:
        for batch in self.batches:
            pieces = math.ceil(len(batch) / self.most)
            ends = [len(batch) * piece // pieces for piece in range(pieces + 1)]
            yield from (batch[start:end] for start, end in pairwise(ends))


def in_pieces(loader: DataLoader, most: int = MOST) -> tuple[DataLoader, int]:
    """A loader of the same samples in the same order, in pieces of batches, and how many pieces a batch has.

    A worker that builds whole batches keeps a step waiting for all of a batch at the start of an epoch, and two batches
    a worker are under way in shared memory. The batch that a recipe asks for then decides how much memory that is.

    Args:
        loader: of batches. Where its workers need not be spared (it has none, its batches are small enough), or its
            batches cannot be put together from pieces (its collate function or its batches are of a kind of their
            own), it is returned as it is, with 1.
        most: samples in a piece, at most.
    """
    collate = loader.collate_fn.func if isinstance(loader.collate_fn, partial) else loader.collate_fn  # MMEngine's
    joins = collate in (default_collate, FUNCTIONS.get("collate"))
    ordinary = type(loader.batch_sampler) is BatchSampler and not isinstance(loader.dataset, IterableDataset)
    if not joins or not ordinary or loader.num_workers == 0 or loader.batch_size <= most:
        return loader, 1
    # Whatever else this version of PyTorch lets a loader have.
    names = set(inspect.signature(DataLoader).parameters) - {"batch_size", "shuffle", "sampler", "drop_last"}
    settings = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    # It counts pieces now: as many are to be ready as a batch has, so that no worker waits for a step to end.
    pieces = math.ceil(loader.batch_size / most)
    settings["prefetch_factor"] = max(loader.prefetch_factor or 2, math.ceil(pieces / loader.num_workers) + 1)
    settings["batch_sampler"] = ChunkedBatchSampler(loader.batch_sampler, most)
    return DataLoader(**settings), pieces


def join(pieces: list[Any]) -> Any:
    """Put together what ``default_collate`` has made of pieces of a batch: one of the same kind."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(pieces)
    if isinstance(first, dict):
        return {key: join([piece[key] for piece in pieces]) for key in first}
    if isinstance(first[0], (str, bytes)):
        return list(chain(*pieces))
    return [join(list(parts)) for parts in zip(*pieces)]  # the samples have lists or tuples


def split_batch(batch: dict[str, Any], parts: int) -> list[dict[str, Any]]:
    """Split a batch of B samples into parts that differ by one sample at most.

    Tensors ``(B, ...)`` and lists of B samples are split; of dicts, and of lists of tensors ``(B, ...)``, which hold
    several views of the samples, each entry.

    Raises:
        ValueError: a list may be of samples or of views.
    """
    if parts == 1:
        return [batch]
    size = samples_in(batch)
    ends = [size * part // parts for part in range(parts + 1)]
    return [_cut(batch, start, end, size) for start, end in pairwise(ends)]


def _cut(value: Any, start: int, end: int, size: int) -> Any:
    if isinstance(value, dict):
        return {key: _cut(inner, start, end, size) for key, inner in value.items()}
    tensors = isinstance(value, (list, tuple)) and value and all(isinstance(v, Tensor) and v.ndim for v in value)
    if tensors and all(len(v) == size for v in value):
        if len(value) == size and value[0].ndim < 4:  # images of samples have three dimensions
            raise ValueError(
                f"a list of {size} tensors {tuple(value[0].shape)} may hold {size} samples or {size} views of them: a "
                "batch of this size cannot be split, set another global_batch_size or max_batch_per_device"
            )
        return [view[start:end] for view in value]
    return value[start:end]
