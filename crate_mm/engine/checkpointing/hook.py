"""Decide when checkpoints are written and which are kept."""

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.dist import is_distributed
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...checkpoints import training_checkpoints, training_progress
from ...datasets.base import ResumableSampler
from ...io.files import write_whole
from ...registry import HOOKS, suggest
from ..loop import TrainLoop
from ..safety.finite import RunStoppedError
from ..safety.signals import RunInterruptedError
from .best import BETTER, BestCheckpoint, rule_of
from .results import checkpoint_metadata, to_builtin
from .work_dir import relocate_paths


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Write checkpoints at each epoch's end, every few minutes, and when a signal stops the run.

    The state is copied, and a thread writes the copy while training continues: to a temporary file, which is synced,
    renamed and read back. Only then are older checkpoints of this run deleted. After a failed write the run continues
    and older checkpoints stay. The next checkpoint, and the end of the run, wait for the thread. Files contain tensors,
    numbers, strings, lists and dicts only.

    Args:
        interval: epochs between two checkpoints.
        max_keep_ckpts: number of epoch checkpoints to keep; -1 for all. The checkpoint before the newest is always
            kept, in case the newest is damaged. Older mid-epoch checkpoints are deleted.
        every_minutes: minutes between mid-epoch checkpoints, or None.
        every_iters: iterations between mid-epoch checkpoints, or None.
        save_best: a metric or a list of metrics; the best epoch by each is saved too. 'auto': the headline metric.
        rule: whether 'greater' or 'less' is better, for a ``save_best`` metric with no known rule.
        save_last: save the last epoch regardless of ``interval``; if the run ends within an epoch, save its last step.
        save_begin: first epoch to save.
        save_optimizer, save_param_scheduler: include the states that a resume needs.
        background: continue training while a file is written; rank 0 then needs additional memory of the file's size.
            A best checkpoint is always written in the foreground.
        by_epoch, out_dir, filename_tmpl: MMEngine's arguments; other values than these defaults raise an error.

    Raises:
        ValueError: an argument is wrong, or (before training) the rule of a ``save_best`` metric is not known.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        interval: int = 1,
        max_keep_ckpts: int = -1,
        every_minutes: float | None = 10,
        every_iters: int | None = None,
        save_best: str | list[str] | None = None,
        rule: str | None = None,
        save_last: bool = True,
        save_begin: int = 0,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        background: bool = True,
        by_epoch: bool = True,
        out_dir: str | None = None,
        filename_tmpl: str = "epoch_{}.pth",
        **others: Any,
    ) -> None:
        if by_epoch is not True or out_dir is not None or filename_tmpl != "epoch_{}.pth":
            raise ValueError(  # --resume would not find other files
                "CheckpointHook writes epoch_N.pth to the work directory: leave out by_epoch, out_dir and filename_tmpl"
            )
        if others:
            raise ValueError(f"CheckpointHook has no argument {', '.join(others)}")
        for name, value in (("every_minutes", every_minutes), ("every_iters", every_iters)):
            if value is not None and not (isinstance(value, (int, float)) and value > 0):
                raise ValueError(f"CheckpointHook: {name} must be a number above 0 or None, got {value!r}")
        if rule not in (None, *BETTER):
            raise ValueError(f"CheckpointHook: rule must be 'greater' or 'less', got {rule!r}")
        self.interval, self.max_keep = interval, max_keep_ckpts
        self.every_minutes, self.every_iters = every_minutes, every_iters
        self.save_best = [save_best] if isinstance(save_best, str) else list(save_best or ())
        self.rule = rule
        self.save_last, self.save_begin = save_last, save_begin
        if not isinstance(background, bool):
            raise ValueError(f"CheckpointHook: background must be True or False, got {background!r}")
        self.background = background
        self.state_options = {"save_optimizer": save_optimizer, "save_param_scheduler": save_param_scheduler}
        self.saved_epoch = -1
        self.own_checkpoints: list[str] = []  # names of the files that this run may delete, oldest first
        self.best: list[BestCheckpoint] = []

    def headline(self, runner: Runner) -> tuple[str, str]:
        """Return the metric that selects the best epoch, and whether 'greater' or 'less' is better."""
        first = (self.save_best or ["auto"])[0]
        return runner.task.headline if first == "auto" else (first, self.rule or rule_of(first, runner))

    # When ---------------------------------------------------------------------------------------------------------

    def before_train(self, runner: Runner) -> None:
        headline = runner.task.headline
        metrics = [headline[0] if metric == "auto" else metric for metric in self.save_best]
        if runner.has_validation:
            alone = len(metrics) == 1
            self.best = [BestCheckpoint(metric, self.rule or rule_of(metric, runner), alone) for metric in metrics]
            for best in self.best:
                best.warn_if_missing(runner)
        self.saved_at = time.monotonic()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        if isinstance(runner.train_loop, TrainLoop):
            by_time = self.every_minutes and time.monotonic() - self.saved_at >= 60 * self.every_minutes
            by_count = self.every_iters and (runner.iter + 1) % self.every_iters == 0
            runner.train_loop.local_flags["save"] = int(bool(by_time or by_count))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        runner.finish_checkpoint(wait=False)
        loop = runner.train_loop
        if not isinstance(loop, TrainLoop):
            return  # other loops do not exchange flags within an epoch
        signal, due = max(loop.all_flags["signal"]), max(loop.all_flags["save"])
        step = runner.iter + 1
        ends = self.save_last and self._ends_mid_epoch(runner, step)
        if signal or due or loop.stop_error or ends:
            self.save_mid_epoch(runner, step, last=bool(signal or loop.stop_error or ends))
        if ends:
            self.saved_epoch = runner.epoch + 1
        if signal or loop.stop_error:
            runner.finish_checkpoint()  # before the other ranks exit
        if signal and not loop.stop_error:
            loop.stop_error = self._interrupted(runner, signal)

    def before_stopping(self, runner: Runner) -> None:
        """Save a checkpoint of the steps taken so far, when the run stops before its next step."""
        loop = runner.train_loop
        if runner.iter and self.saved_epoch != runner.epoch:
            self.save_mid_epoch(runner, runner.iter, last=True)
        runner.finish_checkpoint()
        if not loop.stop_error:
            loop.stop_error = self._interrupted(runner, max(loop.all_flags["signal"]))

    def after_train_epoch(self, runner: Runner) -> None:
        epoch = runner.epoch + 1
        since = epoch - self.save_begin
        due = self.interval > 0 and since >= 0 and since % self.interval == 0
        if due or (self.save_last and epoch == runner.max_epochs):
            runner.logger.info(f"Saving checkpoint at {epoch} epochs")
            self.save_epoch(runner, epoch, runner.iter)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        signals = getattr(runner.train_loop, "signals", None) if runner.is_training else None
        # Several ranks stop at the next training step, where they exchange flags.
        if signals and signals.received and not is_distributed() and self.saved_epoch == runner.epoch:
            raise self._interrupted(runner, signals.received)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if not runner.is_training or not self.best:
            return
        missing = [best.metric for best in self.best if best.metric not in (metrics or {})]
        if missing:
            raise RunStoppedError(
                f"save_best {missing[0]!r} is not a metric: {suggest(missing[0], list(metrics or ()))}"
            )
        if self._last_step_skipped(runner):
            return
        better = [best for best in self.best if best.update(runner, metrics[best.metric])]
        if better and self._ends_mid_epoch(runner, runner.iter):
            self.save_mid_epoch(runner, runner.iter, last=True, epoch=runner.epoch - 1)
        elif better:  # the checkpoint to resume from must name the new best file
            self.save_epoch(runner, runner.epoch, runner.iter)

    @staticmethod
    def _interrupted(runner: Runner, signal: int) -> RunInterruptedError:
        runner.finish_checkpoint()
        newest = training_checkpoints(runner.work_dir)
        return RunInterruptedError(signal, f"the newest checkpoint is {newest[-1] if newest else 'not written yet'}")

    # Writing and deleting -----------------------------------------------------------------------------------------

    def save_mid_epoch(self, runner: Runner, step: int, last: bool = False, epoch: int | None = None) -> None:
        """Write a mid-epoch checkpoint, if the sampler can resume from it. All ranks call it.

        Args:
            runner: the runner.
            step: number of steps taken.
            last: whether it is the last checkpoint of this launch.
            epoch: number of epochs before this one (default: the runner's epoch).
        """
        epoch = runner.epoch if epoch is None else epoch
        if isinstance(runner.train_dataloader.sampler, ResumableSampler) or self._ends_mid_epoch(runner, step):
            self._save(runner, f"epoch_{epoch}_iter_{step}.pth", {"epoch": epoch, "iter": step}, last)

    def save_epoch(self, runner: Runner, epoch: int, step: int) -> None:
        """Write the checkpoint of a completed epoch."""
        self.saved_epoch = epoch
        self._save(runner, f"epoch_{epoch}.pth", {"epoch": epoch, "iter": step}, last=True)

    def _save(self, runner: Runner, name: str, meta: dict, last: bool) -> None:
        runner.finish_checkpoint()  # may delete older files, which changes the list that the next checkpoint stores
        skipped = self._last_step_skipped(runner)
        if skipped and not (last and all(p.isfinite().all() for p in runner.model.parameters())):
            runner.logger.warning(
                f"skipped writing {name}: the last step was skipped because its gradients were not finite"
            )
            return
        path = Path(runner.work_dir) / name
        runner.message_hub.update_info("last_ckpt", str(path))
        # Delete only this run's files. Checkpoints store their names, so a resumed run knows them.
        self.own_checkpoints = [own for own in self.own_checkpoints if own != name] + [name]
        runner.message_hub.update_info("checkpoints", list(self.own_checkpoints))
        # Weights after a skipped step may not be trainable any more: they must not replace older checkpoints.
        on_success = None if skipped else partial(self._delete_older, runner, path)
        runner.save_checkpoint(
            runner.work_dir, name, meta=meta, background=self.background, on_success=on_success, **self.state_options
        )
        self.saved_at = time.monotonic()

    def _delete_older(self, runner: Runner, newest: Path) -> None:
        progress = training_progress(newest)
        own = [path for path in training_checkpoints(runner.work_dir) if path.name in self.own_checkpoints]
        older = [path for path in own if training_progress(path) < progress]
        epochs = [path for path in older if training_progress(path)[1] == 0]
        num_epochs = self.max_keep if progress[1] else self.max_keep - 1  # an epoch checkpoint itself counts
        retained = {*older[-1:], *(epochs if self.max_keep < 0 else epochs[max(len(epochs) - num_epochs, 0) :])}
        try:
            write_whole(newest.with_name("last_checkpoint"), os.fsencode(newest))  # for MMEngine's tools
            for path in older:
                if path not in retained:
                    path.unlink(missing_ok=True)
                    self.own_checkpoints.remove(path.name)
        except OSError as error:
            runner.logger.warning(f"could not delete old checkpoints in {runner.work_dir}: {error}")

    @staticmethod
    def _ends_mid_epoch(runner: Runner, step: int) -> bool:
        """Return whether a step is the last one of the run and lies within an epoch."""
        return step == runner.max_iters and step % len(runner.train_dataloader) != 0

    @staticmethod
    def _last_step_skipped(runner: Runner) -> bool:
        """Return whether the last step was skipped because its gradients were not finite."""
        return bool(getattr(runner.optim_wrapper, "skipped_in_a_row", 0))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        hub = checkpoint["message_hub"]
        checkpoint["meta"] |= checkpoint_metadata(runner)
        info = {key: to_builtin(value) for key, value in hub["runtime_info"].items()}
        resumed_keys = {key: value for key, value in hub["resumed_keys"].items() if key in info}
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": info, "resumed_keys": resumed_keys}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        info = (checkpoint.get("message_hub") or {}).get("runtime_info") or {}
        relocate_paths(info, runner.work_dir)
        if runner.is_resuming:
            self.own_checkpoints = [name for name in info.get("checkpoints") or () if training_progress(name)]
