"""Prefetch a loader's batches by one step."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.utils import apply_to
from torch import Tensor

from .chunks import join


class Prefetcher:
    """Iterator over a loader that loads one batch ahead, so that a loading error is known one step early.

    On a GPU, all tensors of the next batch, in dicts, lists and tuples of any depth, are copied to the GPU meanwhile;
    strings stay on the host. The first batch is loaded at construction.

    Args:
        loader: a loader of batches, in pinned memory for a GPU.
        chunks_per_batch: number of consecutive chunks of a batch, see ``chunk_loader``; the last batch may have fewer.

    Attributes:
        loaded: the iterator over the loader.
        error: the exception of a failed load, or None. Batches loaded before the failure are still returned.
    """

    def __init__(self, loader: Iterable[Any], chunks_per_batch: int = 1) -> None:
        self.chunks_per_batch = chunks_per_batch
        self.error: Exception | None = None
        self._stream = torch.cuda.Stream() if get_device() == "cuda" else None
        self.loaded = iter(loader)
        self._next_batch = self._load()

    def __iter__(self) -> Iterator[Any]:
        while self._next_batch is not None:
            batch, copy_done = self._next_batch
            self._next_batch = self._load()
            yield self._receive(batch, copy_done)

    def _load(self) -> "tuple[Any, torch.cuda.Event | None] | None":
        try:
            # Each chunk is copied to the GPU while the next one is loaded.
            chunks = [self._send(chunk) for chunk in islice(self.loaded, self.chunks_per_batch)]
            return self._join(chunks) if chunks else None
        except Exception as error:
            self.error = error
            return None

    def _send(self, chunk: Any) -> Any:
        if self._stream is None:
            return chunk
        with torch.cuda.stream(self._stream):
            return apply_to(chunk, torch.is_tensor, partial(Tensor.to, device="cuda", non_blocking=True))

    def _join(self, chunks: list[Any]) -> "tuple[Any, torch.cuda.Event | None]":
        if self._stream is None:
            return join(chunks), None
        with torch.cuda.stream(self._stream):
            batch, copy_done = join(chunks), torch.cuda.Event()
            copy_done.record()
        return batch, copy_done

    def _receive(self, batch: Any, copy_done: "torch.cuda.Event | None") -> Any:
        if copy_done is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(copy_done)
            # The allocator must not reuse a tensor's memory before the step has read it.
            apply_to(batch, torch.is_tensor, lambda tensor: tensor.record_stream(stream))
        return batch
