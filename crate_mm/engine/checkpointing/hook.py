"""When checkpoints are written, and which are kept."""

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
    """Write checkpoints, and lose nothing.

    At each epoch's end, every few minutes within it, and when a signal stops the run. The state is copied, and a thread
    writes it while training goes on: to a file beside its place, which is synced, renamed and read back. Only then old
    ones go, and only those that this run has written. A write that fails leaves the run going and the old ones as they
    are. The next checkpoint, and the end of the run, wait for the thread. Files hold tensors, numbers, strings, lists
    and dicts.

    Args:
        interval: epochs from one to the next.
        max_keep_ckpts: how many of the epochs' are kept; all with -1. The one before the newest is always kept, should
            the newest be damaged; older ones from within an epoch are not.
        every_minutes: how often one is written within an epoch, or None.
        every_iters: the same in iterations, or None.
        save_best: the metric, or several, whose best epoch is kept as well; 'auto' for the task's headline.
        rule: 'greater' or 'less', for ``save_best`` by a metric that is not known here.
        save_last: write the last epoch's, whatever the interval; of a run that ends within an epoch, the last step's.
        save_begin: the epoch from which on they are written.
        save_optimizer, save_param_scheduler: what a resume needs.
        background: let training go on while a file is written, which takes as much memory as the file has bytes. The
            best epoch's is waited for in any case.
        by_epoch, out_dir, filename_tmpl: MMEngine's, which are as they are here.

    Raises:
        ValueError: an argument is wrong, or (before training) it is not known what is better.
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
            raise ValueError(  # --resume would not find them
                "CheckpointHook writes epoch_N.pth to the work folder: leave out by_epoch, out_dir and filename_tmpl"
            )
        if others:
            raise ValueError(f"CheckpointHook has no argument {', '.join(others)}")
        for name, value in (("every_minutes", every_minutes), ("every_iters", every_iters)):
            if value is not None and not (isinstance(value, (int, float)) and value > 0):
                raise ValueError(f"CheckpointHook: {name} must be a number above 0 or None, got {value!r}")
        if rule not in (None, *BETTER):
            raise ValueError(f"CheckpointHook: rule must be 'greater' or 'less', got {rule!r}")
        self.interval, self.keep = interval, max_keep_ckpts
        self.every_minutes, self.every_iters = every_minutes, every_iters
        self.save_best = [save_best] if isinstance(save_best, str) else list(save_best or ())
        self.rule = rule
        self.save_last, self.save_begin = save_last, save_begin
        if not isinstance(background, bool):
            raise ValueError(f"CheckpointHook: background must be True or False, got {background!r}")
        self.background = background
        self.parts = {"save_optimizer": save_optimizer, "save_param_scheduler": save_param_scheduler}
        self.saved_epoch = -1
        self.written: list[str] = []  # the names of this run's checkpoints, the oldest first
        self.best: list[BestCheckpoint] = []

    def headline(self, runner: Runner) -> tuple[str, str]:
        """The metric that decides which epoch is the best, and whether 'greater' or 'less' is better."""
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
            return  # whose processes do not agree within an epoch
        signal, due = max(loop.agreed["signal"]), max(loop.agreed["save"])
        step = runner.iter + 1
        ends = self.save_last and self._is_cut(runner, step)
        if signal or due or loop.stopping or ends:
            self.save_mid_epoch(runner, step, last=bool(signal or loop.stopping or ends))
        if ends:
            self.saved_epoch = runner.epoch + 1
        if signal or loop.stopping:
            runner.finish_checkpoint()  # before the other processes end
        if signal and not loop.stopping:
            loop.stopping = self._interrupted(runner, signal)

    def before_stopping(self, runner: Runner) -> None:
        """Save the steps taken so far, where no further one is taken."""
        loop = runner.train_loop
        if runner.iter and self.saved_epoch != runner.epoch:
            self.save_mid_epoch(runner, runner.iter, last=True)
        runner.finish_checkpoint()
        if not loop.stopping:
            loop.stopping = self._interrupted(runner, max(loop.agreed["signal"]))

    def after_train_epoch(self, runner: Runner) -> None:
        epoch = runner.epoch + 1
        since = epoch - self.save_begin
        due = self.interval > 0 and since >= 0 and since % self.interval == 0
        if due or (self.save_last and epoch == runner.max_epochs):
            runner.logger.info(f"Saving checkpoint at {epoch} epochs")
            self.save_epoch(runner, epoch, runner.iter)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        signals = getattr(runner.train_loop, "signals", None) if runner.is_training else None
        # Several processes stop at the next step of training, where they agree on it.
        if signals and signals.received and not is_distributed() and self.saved_epoch == runner.epoch:
            raise self._interrupted(runner, signals.received)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if not runner.is_training or not self.best:
            return
        missing = [best.metric for best in self.best if best.metric not in (metrics or {})]
        if missing:
            raise RunStoppedError(f"save_best {missing[0]!r} is no metric: {suggest(missing[0], list(metrics or ()))}")
        if self._last_step_skipped(runner):
            return
        better = [best for best in self.best if best.update(runner, metrics[best.metric])]
        if better and self._is_cut(runner, runner.iter):
            self.save_mid_epoch(runner, runner.iter, last=True, epoch=runner.epoch - 1)
        elif better:  # what a resume goes on from must know of it
            self.save_epoch(runner, runner.epoch, runner.iter)

    @staticmethod
    def _interrupted(runner: Runner, signal: int) -> RunInterruptedError:
        runner.finish_checkpoint()
        newest = training_checkpoints(runner.work_dir)
        return RunInterruptedError(signal, f"the newest checkpoint is {newest[-1] if newest else 'not written yet'}")

    # What ---------------------------------------------------------------------------------------------------------

    def save_mid_epoch(self, runner: Runner, step: int, last: bool = False, epoch: int | None = None) -> None:
        """Write a checkpoint of so many steps, from where a sampler can go on; all processes call it.

        Args:
            runner: of the run.
            step: how many steps it has taken.
            last: no other one will come.
            epoch: number of epochs before the one that the step is of; the run's if not given.
        """
        epoch = runner.epoch if epoch is None else epoch
        if isinstance(runner.train_dataloader.sampler, ResumableSampler) or self._is_cut(runner, step):
            self._save(runner, f"epoch_{epoch}_iter_{step}.pth", {"epoch": epoch, "iter": step}, last)

    def save_epoch(self, runner: Runner, epoch: int, step: int) -> None:
        """Write the checkpoint of a whole epoch."""
        self.saved_epoch = epoch
        self._save(runner, f"epoch_{epoch}.pth", {"epoch": epoch, "iter": step}, last=True)

    def _save(self, runner: Runner, name: str, meta: dict, last: bool) -> None:
        runner.finish_checkpoint()  # which may delete older ones, of which the next one tells
        in_trouble = self._last_step_skipped(runner)
        if in_trouble and not (last and all(p.isfinite().all() for p in runner.model.parameters())):
            runner.logger.warning(f"{name} is not written: the last step was skipped, its numbers not being finite")
            return
        path = Path(runner.work_dir) / name
        runner.message_hub.update_info("last_ckpt", str(path))
        # Only what this run has written is ever deleted; a resume knows of it by the checkpoint.
        self.written = [other for other in self.written if other != name] + [name]
        runner.message_hub.update_info("checkpoints", list(self.written))
        then = None if in_trouble else partial(self._delete_older, runner, path)
        runner.save_checkpoint(runner.work_dir, name, meta=meta, background=self.background, then=then, **self.parts)
        self.saved_at = time.monotonic()

    def _delete_older(self, runner: Runner, newest: Path) -> None:
        reached = training_progress(newest)
        own = [path for path in training_checkpoints(runner.work_dir) if path.name in self.written]
        older = [path for path in own if training_progress(path) < reached]
        epochs = [path for path in older if training_progress(path)[1] == 0]
        more = self.keep if reached[1] else self.keep - 1  # the newest is of an epoch's end, or is kept besides
        kept = {*older[-1:], *(epochs if self.keep < 0 else epochs[max(len(epochs) - more, 0) :])}
        try:
            write_whole(newest.with_name("last_checkpoint"), os.fsencode(newest))  # for MMEngine's tools
            for path in older:
                if path not in kept:
                    path.unlink(missing_ok=True)
                    self.written.remove(path.name)
        except OSError as error:
            runner.logger.warning(f"cannot tidy up {runner.work_dir}: {error}")

    @staticmethod
    def _is_cut(runner: Runner, step: int) -> bool:
        """Return whether a step is the last one of the run, and within an epoch."""
        return step == runner.max_iters and step % len(runner.train_dataloader) != 0

    @staticmethod
    def _last_step_skipped(runner: Runner) -> bool:
        """Whether the weights may be such that no step can be taken any more: they replace no checkpoint."""
        return bool(getattr(runner.optim_wrapper, "skipped_in_a_row", 0))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        hub = checkpoint["message_hub"]
        checkpoint["meta"] |= checkpoint_metadata(runner)
        info = {key: to_builtin(value) for key, value in hub["runtime_info"].items()}
        kept = {key: value for key, value in hub["resumed_keys"].items() if key in info}
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": info, "resumed_keys": kept}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        info = (checkpoint.get("message_hub") or {}).get("runtime_info") or {}
        relocate_paths(info, runner.work_dir)
        if runner.is_resuming:
            self.written = [name for name in info.get("checkpoints") or () if training_progress(name)]
