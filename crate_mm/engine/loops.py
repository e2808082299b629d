"""The training loop: one iteration is one optimisation step."""

from collections.abc import Iterable, Iterator

import torch
from mmengine.device import get_device
from mmengine.runner import EpochBasedTrainLoop
from torch import Tensor

from ..registry import LOOPS
from .signals import Signals


@LOOPS.register_module()
class TrainLoop(EpochBasedTrainLoop):
    """MMEngine's epoch-based loop, which splits what a device loads into micro-batches where that is needed.

    The gradients of the micro-batches are accumulated (by the OptimWrapper's ``accumulative_counts``) and every other
    part, such as the schedule, EMA, hooks and logs, sees one iteration a step, with or without accumulation.

    Args:
        runner, dataloader, kwargs: as for MMEngine's ``EpochBasedTrainLoop``.
        micro_batches: into how many equal parts a device's batch is split.
    """

    def __init__(self, runner, dataloader, micro_batches: int = 1, **kwargs) -> None:
        super().__init__(runner, dataloader, **kwargs)
        self.micro_batches = micro_batches

    def run(self) -> torch.nn.Module:
        """Train to the last epoch, from where the run is."""
        with Signals() as self.signals:
            self.runner.call_hook("before_train")
            self._validate_if_due()  # the run may have been stopped between an epoch and its validation
            while self._epoch < self._max_epochs and not self.stop_training:
                self.run_epoch()
                self._validate_if_due()
            self.runner.call_hook("after_train")
        return self.runner.model

    def _validate_if_due(self) -> None:
        self._decide_current_val_interval()
        due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        if self.runner.val_loop is None or self._epoch < max(self.val_begin, 1) or not due or self._first_step():
            return
        hub = self.runner.message_hub
        if hub.runtime_info.get("epoch_validated") != self._epoch:
            hub.update_info("epoch_validated", self._epoch)
            self.runner.val_loop.run()

    def _first_step(self) -> int:
        """How many steps of this epoch have been taken already, before a resume."""
        return self._iter - self._epoch * len(self.dataloader)

    def run_epoch(self) -> None:
        """Train for an epoch, or for what a resumed run has left of it, without reading what it has had.

        On a GPU the next batch's images are on their way while a step is computed.
        """
        first = self._first_step()
        if first:
            self.dataloader.sampler.start = first
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        batches = DevicePrefetcher(self.dataloader) if get_device() == "cuda" else self.dataloader
        for step, batch in enumerate(self._load(batches), first):
            self.run_iter(step, batch)
        if first:
            self.dataloader.sampler.start = 0
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def _load(self, batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The batches; what fails in loading them is between two steps, so that the hooks may save these."""
        iterator = iter(batches)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except Exception:
                self.runner.call_hook("after_failed_loading")
                raise
            yield batch

    def run_iter(self, idx: int, data_batch: dict[str, Tensor]) -> None:
        """Take one optimisation step on a device's batch."""
        self.runner.call_hook("before_train_iter", batch_idx=idx, data_batch=data_batch)
        logs = [
            self.runner.model.train_step(micro_batch, optim_wrapper=self.runner.optim_wrapper)
            for micro_batch in split_batch(data_batch, self.micro_batches)
        ]
        outputs = {key: sum(log[key] for log in logs) / len(logs) for key in logs[0]}
        self.runner.call_hook("after_train_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)
        self._iter += 1


def split_batch(batch: dict[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    """Split every tensor of a batch ``(B, ...)`` into ``parts`` equal parts along its first dimension."""
    if parts == 1:
        return [batch]
    chunks = {key: value.chunk(parts) for key, value in batch.items()}
    return [{key: chunk[part] for key, chunk in chunks.items()} for part in range(parts)]


class DevicePrefetcher:
    """Iterate over a loader with pinned memory, one batch ahead, with images and labels copied to the GPU meanwhile.

    What the hooks read on the host, such as ``sample_idx``, stays there.
    """

    def __init__(self, loader: Iterable[dict[str, Tensor]], keys: tuple[str, ...] = ("inputs", "labels")) -> None:
        self.loader = loader
        self.keys = keys
        self.stream = torch.cuda.Stream()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        following = None
        for batch in self.loader:
            batch, following = following, self._copy(batch)
            if batch is not None:
                yield self._receive(batch)
        if following is not None:
            yield self._receive(following)

    def _copy(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.cuda.stream(self.stream):
            copied = {key: batch[key].to("cuda", non_blocking=True) for key in self.keys if key in batch}
        return {**batch, **copied}

    def _receive(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        stream = torch.cuda.current_stream()
        stream.wait_stream(self.stream)
        for key in self.keys:
            if key in batch:
                batch[key].record_stream(stream)  # its memory is not given out again before the step has read it
        return batch
