"""The training loop: one iteration is one optimisation step."""

import math

import torch
from mmengine.runner import EpochBasedTrainLoop
from torch import Tensor

from ..models.tasks.base import Task, task_of
from ..registry import LOOPS
from ..torch_private import end_workers
from .loading.chunks import in_pieces, split_batch
from .loading.prefetch import Prefetcher
from .parallel.launch import dist_timeout
from .safety.agreement import Agreement, notice_hanging
from .safety.finite import PeerFailedError
from .safety.signals import Signals


@LOOPS.register_module()
class TrainLoop(EpochBasedTrainLoop):
    """MMEngine's epoch-based loop, which splits what a device loads into micro-batches where that is needed.

    The gradients of the micro-batches are accumulated (by the OptimWrapper's ``accumulative_counts``) and every other
    part, such as the schedule, EMA, hooks and logs, sees one iteration a step, with or without accumulation.

    Micro-batches may differ by a sample, and so may the shares of the processes. The loss of each, a mean over what the
    task counts (its samples, or another number, see ``Task.count``), is weighted by that count, so that the step is
    that of the mean over the global batch. The losses that hooks see are weighted too: their mean over the processes is
    the mean over the global batch.

    At each step the processes agree: hooks put numbers of their process into ``local_flags`` before it, and find those
    of all processes in ``agreed``, by rank, after it. A hook that sets ``stopping`` to an exception, on all processes
    alike, ends the run after the step, and lets other hooks save it first.

    A run of ``max_steps`` ends after that step, within an epoch if need be. Such an epoch is not completed: its hooks
    ``after_train_epoch`` are not called, and the last checkpoint is one from within it, from which a longer run can go
    on. It is counted for the last validation.

    Args:
        runner, dataloader, kwargs: as for MMEngine's ``EpochBasedTrainLoop``.
        micro_batches: into how many parts a device's batch is split.
        max_epochs, max_steps: length of the run, one of them.
    """

    def __init__(
        self,
        runner,
        dataloader,
        micro_batches: int = 1,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        **kwargs,
    ) -> None:
        super().__init__(runner, dataloader, max_epochs or 1, **kwargs)
        if max_steps is not None:
            self._max_epochs, self._max_iters = math.ceil(max_steps / len(self.dataloader)), max_steps
        self.micro_batches = micro_batches
        self.task = task_of(runner.model)
        self.counts_samples = type(self.task).count is Task.count  # else the processes exchange their counts
        self.has_after_step = type(self.task).after_step is not Task.after_step  # else no GPU is waited for
        total = runner.cfg.get("global_batch_size")
        self.total = total if total and total % runner.world_size else None  # where the processes' shares differ
        self.loader, self.pieces = in_pieces(self.dataloader)
        self.local_flags = {"signal": 0, "save": 0, "failed": 0, "unreadable": 0}
        self.agreed = {key: [0] for key in self.local_flags}
        self.stopping: Exception | None = None
        self.batches: Prefetcher | None = None
        self.timeout = dist_timeout(runner.cfg)
        self.agreement = Agreement(self.timeout)
        self.signals = Signals()

    def run(self) -> torch.nn.Module:
        """Train to the last step, from where the run is."""
        try:
            with self.signals, notice_hanging(self.timeout):
                self.runner.call_hook("before_train")
                if self._iter >= self._max_iters:  # resumed where nothing is left to train, perhaps within an epoch
                    self._epoch = max(self._epoch, self._max_epochs)
                self._validate_if_due()  # the run may have been stopped between an epoch and its validation
                while self._epoch < self._max_epochs and not self.stop_training:
                    self.run_epoch()
                    self._validate_if_due()
                self.runner.call_hook("after_train")
        finally:
            end_workers(self.loader, self.batches and self.batches.loaded)
            end_workers(self.dataloader)  # which somebody may have looked into
            if self.runner.val_loop is not None:
                end_workers(self.runner.val_loop.dataloader)
        return self.runner.model

    def _validate_if_due(self) -> None:
        self._decide_current_val_interval()
        due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        begin = min(max(self.val_begin, 1), self._max_epochs)  # the last epoch is validated in any case
        if self.runner.val_loop is None or self._epoch < begin or not due or self._first_step() > 0:
            return
        hub, cut = self.runner.message_hub, self._first_step() < 0
        if cut or hub.runtime_info.get("epoch_validated") != self._epoch:
            if not cut:  # else a longer run, which completes the epoch, would not validate it
                hub.update_info("epoch_validated", self._epoch)
            with self.runner.in_val_dtype():
                self.runner.val_loop.run()

    def _first_step(self) -> int:
        """Return how many steps of this epoch were taken before a resume; below 0 behind an epoch that was cut."""
        return self._iter - self._epoch * len(self.dataloader)

    def run_epoch(self) -> None:
        """Train for an epoch, or for the rest of it after a resume, without reading its earlier batches."""
        first = self._first_step()
        if first:
            self.dataloader.sampler.start = first
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        batches = self.batches = Prefetcher(self.loader, self.pieces)
        self._begin_step(batches.error)
        self._end_step(batches.error)
        if self.stopping or any(self.agreed["signal"]):  # before the first step: after the last one before this epoch
            self.runner.call_hook("before_stopping")
        if self.stopping:
            self._stop()
        for step, batch in enumerate(batches, first):
            last = self._iter + 1 == self._max_iters
            self.run_iter(step, batch, None if last else batches.error)
            if last:
                break
        if first:
            self.dataloader.sampler.start = 0
        cut = self._iter == self._max_iters < (self._epoch + 1) * len(self.dataloader)
        if not cut:
            self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: dict[str, Tensor], error: Exception | None = None) -> None:
        """Take one optimisation step on a device's batch.

        Args:
            idx: of the step in its epoch.
            data_batch: the batch.
            error: what failed in loading the batch after it. The step is taken, and the run ends.
        """
        self.runner.call_hook("before_train_iter", batch_idx=idx, data_batch=data_batch)
        self._begin_step(error)
        parts = split_batch(data_batch, self.micro_batches)
        logs = [self._train_part(part, weight) for part, weight in zip(parts, self._weights(parts))]
        outputs = {key: sum(log[key] for log in logs) / len(logs) for key in logs[0]}
        if self.has_after_step:
            with torch.no_grad():
                self.task.after_step(self._iter + 1, getattr(self.runner.optim_wrapper, "skipped", False))
        self._end_step(error)
        self.runner.call_hook("after_train_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)
        self._iter += 1
        if self.stopping:
            self._stop()

    def _weights(self, parts: list[dict[str, Tensor]]) -> list[float]:
        """Return the weight of each micro-batch's loss: its count over the mean count of a micro-batch of the step."""
        if self.counts_samples and self.total is None and len(parts) == 1:
            return [1.0]
        counts = [int(self.task.count(part)) for part in parts]
        if self.counts_samples:
            total = self.total or self.runner.world_size * sum(counts)
        else:
            total = max(self.agreement.sum(sum(counts)), 1)
        return [count * len(parts) * self.runner.world_size / total for count in counts]

    def _train_part(self, part: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
        """Take a micro-batch's part in the step; return its losses, weighted."""
        wrapper = self.runner.optim_wrapper
        if weight == 1:
            return self.runner.model.train_step(part, optim_wrapper=wrapper)
        wrapper.weight = weight
        try:
            log = self.runner.model.train_step(part, optim_wrapper=wrapper)
        finally:
            wrapper.weight = 1.0
        return {key: value * weight for key, value in log.items()}

    def _begin_step(self, error: Exception | None) -> None:
        self.local_flags.update(signal=self.signals.received, failed=int(error is not None))
        self.agreement.begin(self.local_flags)

    def _end_step(self, error: Exception | None) -> None:
        self.agreed = self.agreement.end({**self.local_flags, "signal": self.signals.received})
        if any(self.agreed["failed"]):
            ranks = [rank for rank, failed in enumerate(self.agreed["failed"]) if failed]
            self.stopping = error or PeerFailedError(f"process {ranks[0]} cannot load its data, which ends this one")

    def _stop(self) -> None:
        self.agreement.wait()
        raise self.stopping
