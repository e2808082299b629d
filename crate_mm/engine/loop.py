"""The training loop: one iteration is one optimization step."""

import math

import torch
from mmengine.runner import EpochBasedTrainLoop
from torch import Tensor

from ..datasets.base import samples_in
from ..models.tasks.base import Task, task_of
from ..registry import LOOPS
from ..torch_private import end_workers
from .loading.chunks import chunk_loader, split_batch
from .loading.prefetch import Prefetcher
from .parallel.batch_norm import StatisticsBackup
from .parallel.launch import dist_timeout
from .safety.agreement import Agreement, notice_hanging
from .safety.finite import PeerFailedError
from .safety.signals import Signals


@LOOPS.register_module()
class TrainLoop(EpochBasedTrainLoop):
    """MMEngine's epoch-based loop with micro-batches.

    The OptimWrapper accumulates the gradients of the micro-batches (``accumulative_counts``). Everything else, such as
    schedule, EMA, hooks and logs, sees one iteration per step, with or without accumulation.

    Micro-batches, and per-rank batches, may differ in size by one sample. Each loss is a mean over the units that
    ``Task.count`` counts (by default samples), and is weighted by their count. The step therefore minimizes the mean
    over the global batch. Hooks see weighted losses: their mean over the ranks is the mean over the global batch.

    At each step the ranks exchange flags. Hooks set integers in ``local_flags`` before the step. After the step, hooks
    read the flags of all ranks, in order of rank, from ``all_flags``. To end the run after the step, a hook sets
    ``stop_error`` to an exception on all ranks; other hooks can save a checkpoint first.

    A run of ``max_steps`` can end within an epoch. The hooks' ``after_train_epoch`` is not called for this epoch, but
    the final validation counts it. The last checkpoint is then a mid-epoch checkpoint; a longer run can resume from it.

    Args:
        runner, dataloader, kwargs: as for MMEngine's ``EpochBasedTrainLoop``.
        micro_batches: number of micro-batches of a device's batch.
        max_epochs, max_steps: length of the run; set one of them.
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
            if runner.has_validation and self.val_interval > self._max_epochs:
                raise ValueError(
                    f"train_cfg.val_interval={self.val_interval} counts epochs, and max_steps={max_steps} ends in "
                    f"epoch {self._max_epochs} ({len(self.dataloader)} steps each): set val_interval to at most "
                    f"{self._max_epochs}"
                )
        self.micro_batches = micro_batches
        self.task = task_of(runner.model)
        self.counts_samples = type(self.task).count is Task.count  # otherwise the ranks exchange their counts
        self.task.total_steps = self._max_iters
        self.has_before_step = type(self.task).before_step is not Task.before_step
        self.has_after_step = type(self.task).after_step is not Task.after_step  # its call waits for the GPU
        total = runner.cfg.get("global_batch_size")
        self.total = total if total and total % runner.world_size else None  # set if per-rank batch sizes differ
        self.loader, self.chunks_per_batch = chunk_loader(self.dataloader)
        self.local_flags = {"signal": 0, "save": 0, "failed": 0, "unreadable": 0}
        self.all_flags = {key: [0] for key in self.local_flags}
        self.stop_error: Exception | None = None
        self.batches: Prefetcher | None = None
        self.timeout = dist_timeout(runner.cfg)
        self.agreement = Agreement(self.timeout)
        self.signals = Signals()

    def run(self) -> torch.nn.Module:
        """Train from the current step to the last one."""
        try:
            with self.signals, notice_hanging(self.timeout):
                self.runner.call_hook("before_train")
                if self._iter >= self._max_iters:  # resumed with nothing left to train, perhaps within an epoch
                    self._epoch = max(self._epoch, self._max_epochs)
                self._validate_if_due()  # the run may have been stopped between an epoch and its validation
                while self._epoch < self._max_epochs and not self.stop_training:
                    self.run_epoch()
                    self._validate_if_due()
                self.runner.call_hook("after_train")
        finally:
            end_workers(self.loader, self.batches and self.batches.loaded)
            end_workers(self.dataloader)  # hooks or the user may have iterated over it
            if self.runner.val_loop is not None:
                end_workers(self.runner.val_loop.dataloader)
        return self.runner.model

    def _validate_if_due(self) -> None:
        self._decide_current_val_interval()
        due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        begin = min(max(self.val_begin, 1), self._max_epochs)  # always validate the last epoch
        if self.runner.val_loop is None or self._epoch < begin or not due or self._steps_done() > 0:
            return
        hub, incomplete = self.runner.message_hub, self._steps_done() < 0
        if incomplete or hub.runtime_info.get("epoch_validated") != self._epoch:
            if not incomplete:  # a longer run completes this epoch and must validate it again
                hub.update_info("epoch_validated", self._epoch)
            with self.runner.in_val_dtype():
                self.runner.val_loop.run()

    def _steps_done(self) -> int:
        """Return the number of steps of this epoch taken before a resume; negative after an incomplete epoch."""
        return self._iter - self._epoch * len(self.dataloader)

    def run_epoch(self) -> None:
        """Train for one epoch; after a resume, for its remaining steps, without reading the earlier batches."""
        steps_done = self._steps_done()
        if steps_done:
            self.dataloader.sampler.start = steps_done
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        batches = self.batches = Prefetcher(self.loader, self.chunks_per_batch)
        self._begin_step(batches.error)
        self._end_step(batches.error)
        if self.stop_error or any(self.all_flags["signal"]):  # received since the last step of the previous epoch
            self.runner.call_hook("before_stopping")
        if self.stop_error:
            self._stop()
        for step, batch in enumerate(batches, steps_done):
            last = self._iter + 1 == self._max_iters
            self.run_iter(step, batch, None if last else batches.error)
            if last:
                break
        if steps_done:
            self.dataloader.sampler.start = 0
        incomplete = self._iter == self._max_iters < (self._epoch + 1) * len(self.dataloader)
        if not incomplete:
            self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: dict[str, Tensor], error: Exception | None = None) -> None:
        """Take one optimization step on a device's batch.

        Args:
            idx: index of the step in its epoch.
            data_batch: the batch.
            error: exception raised while the next batch was loaded. The step is taken, then the run ends.
        """
        self.runner.call_hook("before_train_iter", batch_idx=idx, data_batch=data_batch)
        self._begin_step(error)
        batches = split_batch(data_batch, self.micro_batches)
        if self.has_before_step:
            self._before_step(batches)
        logs = [self._train_micro_batch(batch, weight) for batch, weight in zip(batches, self._weights(batches))]
        outputs = {key: sum(log[key] for log in logs) / len(logs) for key in logs[0]}
        if self.has_after_step:
            with torch.no_grad():
                self.task.after_step(self._iter + 1, getattr(self.runner.optim_wrapper, "skipped", False))
        self._end_step(error)
        self.runner.call_hook("after_train_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)
        self._iter += 1
        if self.stop_error:
            self._stop()

    def _before_step(self, batches: list[dict[str, Tensor]]) -> None:
        statistics = StatisticsBackup()
        statistics.store(self.task)
        total = self.runner.cfg.get("global_batch_size") or self.runner.world_size * sum(map(samples_in, batches))
        with torch.no_grad(), self.runner.optim_wrapper.autocast(self.task):
            self.task.before_step(batches, total)
        statistics.restore()

    def _weights(self, batches: list[dict[str, Tensor]]) -> list[float]:
        """Return each micro-batch's loss weight: its count divided by the mean count of the step's micro-batches."""
        if self.counts_samples and self.total is None and len(batches) == 1:
            return [1.0]
        counts = [int(self.task.count(batch)) for batch in batches]
        if self.counts_samples:
            total = self.total or self.runner.world_size * sum(counts)
        else:
            total = max(self.agreement.sum(sum(counts)), 1)
        return [count * len(batches) * self.runner.world_size / total for count in counts]

    def _train_micro_batch(self, batch: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
        """Accumulate the gradients of a micro-batch, and step after the last one; return its weighted losses."""
        wrapper = self.runner.optim_wrapper
        if weight == 1:
            return self.runner.model.train_step(batch, optim_wrapper=wrapper)
        wrapper.loss_weight = weight
        try:
            log = self.runner.model.train_step(batch, optim_wrapper=wrapper)
        finally:
            wrapper.loss_weight = 1.0
        return {key: value * weight for key, value in log.items()}

    def _begin_step(self, error: Exception | None) -> None:
        self.local_flags.update(signal=self.signals.received, failed=int(error is not None))
        self.agreement.begin(self.local_flags)

    def _end_step(self, error: Exception | None) -> None:
        self.all_flags = self.agreement.end({**self.local_flags, "signal": self.signals.received})
        if any(self.all_flags["failed"]):
            ranks = [rank for rank, failed in enumerate(self.all_flags["failed"]) if failed]
            self.stop_error = error or PeerFailedError(f"stopped because process {ranks[0]} cannot load its data")

    def _stop(self) -> None:
        self.agreement.wait()
        raise self.stop_error
