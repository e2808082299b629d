"""A loader's batches, each loaded one step before it is needed."""

from collections.abc import Iterable, Iterator

import torch
from mmengine.device import get_device
from torch import Tensor


class LookAhead:
    """Iterate over a loader once, one batch ahead, so that what fails in loading is known a step before it is needed.

    On a GPU the images and labels of the batch ahead are on their way to it meanwhile; what the hooks read on the host,
    such as ``sample_idx``, stays there. The first batch is loaded at once.

    Args:
        loader: of dicts of tensors, in pinned memory for a GPU.
        keys: of the tensors that go to the GPU.

    ``loaded`` is the iterator over the loader.
    After a failure ``error`` is the exception; the batches that were loaded before it are given out.
    """

    def __init__(self, loader: Iterable[dict[str, Tensor]], keys: tuple[str, ...] = ("inputs", "labels")) -> None:
        self.keys = keys
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
            batch = next(self.loaded, None)
        except Exception as error:
            self.error = error
            return None
        if batch is None or self._stream is None:
            return batch and (batch, None)
        with torch.cuda.stream(self._stream):
            copied = {key: batch[key].to("cuda", non_blocking=True) for key in self.keys if key in batch}
            arrived = torch.cuda.Event()
            arrived.record()
        return {**batch, **copied}, arrived

    def _receive(self, batch: dict[str, Tensor], arrived: "torch.cuda.Event | None") -> dict[str, Tensor]:
        if arrived is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(arrived)
            for key in self.keys:
                if key in batch and batch[key].is_cuda:
                    batch[key].record_stream(stream)  # its memory is not given out again before the step has read it
        return batch
