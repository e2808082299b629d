"""A loader's batches, each loaded one step before it is needed."""

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
    """Iterate over a loader once, one batch ahead, so that what fails in loading is known a step before it is needed.

    On a GPU all tensors of the batch ahead, in dicts, lists and tuples of any depth, are on their way to it meanwhile;
    strings stay on the host. The first batch is loaded at once.

    Args:
        loader: of batches, in pinned memory for a GPU.
        pieces: how many of them in a row make a batch, see ``in_pieces``; the last batch may have fewer.

    ``loaded`` is the iterator over the loader.
    After a failure ``error`` is the exception; the batches that were loaded before it are given out.
    """

    def __init__(self, loader: Iterable[Any], pieces: int = 1) -> None:
        self.pieces = pieces
        self.error: Exception | None = None
        self._stream = torch.cuda.Stream() if get_device() == "cuda" else None
        self.loaded = iter(loader)
        self._following = self._load()

    def __iter__(self) -> Iterator[Any]:
        while self._following is not None:
            batch, arrived = self._following
            self._following = self._load()
            yield self._receive(batch, arrived)

    def _load(self) -> "tuple[Any, torch.cuda.Event | None] | None":
        try:
            # Each piece is on its way to the GPU while the next one is waited for.
            pieces = [self._send(piece) for piece in islice(self.loaded, self.pieces)]
            return self._join(pieces) if pieces else None
        except Exception as error:
            self.error = error
            return None

    def _send(self, piece: Any) -> Any:
        if self._stream is None:
            return piece
        with torch.cuda.stream(self._stream):
            return apply_to(piece, torch.is_tensor, partial(Tensor.to, device="cuda", non_blocking=True))

    def _join(self, pieces: list[Any]) -> "tuple[Any, torch.cuda.Event | None]":
        if self._stream is None:
            return join(pieces), None
        with torch.cuda.stream(self._stream):
            batch, arrived = join(pieces), torch.cuda.Event()
            arrived.record()
        return batch, arrived

    def _receive(self, batch: Any, arrived: "torch.cuda.Event | None") -> Any:
        if arrived is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(arrived)
            # The memory of a tensor is not given out again before the step has read it.
            apply_to(batch, torch.is_tensor, lambda tensor: tensor.record_stream(stream))
        return batch
