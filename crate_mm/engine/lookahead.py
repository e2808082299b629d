"""A loader's batches, each loaded one step before it is needed."""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from mmengine.device import get_device
from torch import Tensor

from .pieces import join


class LookAhead:
    """Iterate over a loader once, one batch ahead, so that what fails in loading is known a step before it is needed.

    On a GPU the images and labels of the batch ahead are on their way to it meanwhile; what the hooks read on the host,
    such as ``sample_idx``, stays there. The first batch is loaded at once.

    Args:
        loader: of dicts of tensors, in pinned memory for a GPU.
        pieces: how many of them in a row make a batch, see ``in_pieces``; the last batch may have fewer.
        keys: of the tensors that go to the GPU.

    ``loaded`` is the iterator over the loader.
    After a failure ``error`` is the exception; the batches that were loaded before it are given out.
    """

    def __init__(
        self, loader: Iterable[dict[str, Tensor]], pieces: int = 1, keys: tuple[str, ...] = ("inputs", "labels")
    ) -> None:
        self.pieces, self.keys = pieces, keys
        self.error: Exception | None = None
        self._stream = torch.cuda.Stream() if get_device() == "cuda" else None
        self.loaded = iter(loader)
        self._following = self._load()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while self._following is not None:
            batch, arrived = self._following
            self._following = self._load()
            yield self._receive(batch, arrived)

    def _load(self) -> "tuple[dict[str, Tensor], torch.cuda.Event | None] | None":
        try:
            # Each piece is on its way to the GPU while the next one is waited for.
            pieces = [self._send(piece) for piece in islice(self.loaded, self.pieces)]
            return self._join(pieces) if pieces else None
        except Exception as error:
            self.error = error
            return None

    def _send(self, piece: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._stream is None:
            return piece
        with torch.cuda.stream(self._stream):
            return {**piece, **{key: piece[key].to("cuda", non_blocking=True) for key in self.keys if key in piece}}

    def _join(self, pieces: list[dict[str, Tensor]]) -> "tuple[dict[str, Tensor], torch.cuda.Event | None]":
        if self._stream is None:
            return join(pieces), None
        with torch.cuda.stream(self._stream):
            batch, arrived = join(pieces), torch.cuda.Event()
            arrived.record()
        return batch, arrived

    def _receive(self, batch: dict[str, Tensor], arrived: "torch.cuda.Event | None") -> dict[str, Tensor]:
        if arrived is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(arrived)
            for key in self.keys:
                if key in batch and batch[key].is_cuda:
                    batch[key].record_stream(stream)  # its memory is not given out again before the step has read it
        return batch
