"""When checkpoints are written, and which are kept."""

import re
import time
from itertools import count
from pathlib import Path

import mmengine.hooks
import numpy as np
from mmengine.dist import broadcast_object_list, is_distributed, is_main_process
from mmengine.runner import Runner

from ..files import is_leftover
from ..registry import HOOKS, suggest
from .checkpoint import AtomicBackend, training_checkpoints, training_progress
from .finite import RunStoppedError
from .loops import TrainLoop
from .optim import optimizer_name
from .results import describe_machine
from .signals import RunInterruptedError

# What a run writes into its work folder, beside its place first.
OWN_FILES = r"epoch_\d+(_iter_\d+)?\.pth|best_[\w.-]+_epoch_\d+\.pth|last_checkpoint|result\.json"


@HOOKS.register_module()
class CheckpointHook(mmengine.hooks.CheckpointHook):
    """MMEngine's hook, which loses nothing and whose files load without running code.

    * Files are written beside their place, synced, renamed and read back; only then old ones go. A write that fails
      leaves the run going and the old ones as they are.
    * Within an epoch too, every few minutes or iterations, and when a signal stops the run.
    * They hold tensors, numbers, strings, lists and dicts only: the logs' averaging windows are left out and start
      afresh after a resume. The model's config goes in as data under ``meta['model']``. No path in them is absolute.

    Args:
        max_keep_ckpts: how many of the epochs' are kept; all with -1. The one before the newest is always kept, should
            the newest be damaged; older ones from within an epoch are not.
        every_minutes: how often one is written within an epoch, or None.
        every_iters: the same in iterations, or None.
        kwargs: as for MMEngine's.
    """

    def __init__(
        self, max_keep_ckpts: int = -1, every_minutes: float | None = 10, every_iters: int | None = None, **kwargs
    ) -> None:
        super().__init__(backend_args={"backend": "atomic"}, max_keep_ckpts=-1, **kwargs)
        if self.args:
            raise ValueError(f"CheckpointHook has no argument {', '.join(self.args)}")
        if not self.by_epoch or self.out_dir is not None or self.filename_tmpl != "epoch_{}.pth":
            # --resume would not find them.
            raise ValueError(
                "CheckpointHook writes epoch_N.pth to the work folder: leave out by_epoch, out_dir and filename_tmpl"
            )
        for name, value in (("every_minutes", every_minutes), ("every_iters", every_iters)):
            if value is not None and not (isinstance(value, (int, float)) and value > 0):
                raise ValueError(f"CheckpointHook: {name} must be a number above 0 or None, got {value!r}")
        self.keep = max_keep_ckpts
        self.every_minutes = every_minutes
        self.every_iters = every_iters
        self.saved_epoch = -1
        self.written: list[str] = []  # the names of this run's checkpoints, the oldest first

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.saved_at = time.monotonic()
        if is_main_process():
            for leftover in Path(runner.work_dir).iterdir():
                if is_leftover(leftover.name, OWN_FILES) and leftover.is_file():
                    leftover.unlink()
            self._put_aside_later_ones(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        if isinstance(runner.train_loop, TrainLoop):
            by_time = self.every_minutes and time.monotonic() - self.saved_at >= 60 * self.every_minutes
            by_count = self.every_iters and (runner.iter + 1) % self.every_iters == 0
            runner.train_loop.says["save"] = int(bool(by_time or by_count))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        loop = runner.train_loop
        if not isinstance(loop, TrainLoop):
            return  # whose processes do not agree within an epoch
        signal, due = max(loop.agreed["signal"]), max(loop.agreed["save"])
        if signal or due or loop.stopping:
            self.save_at(runner, runner.iter + 1, last=bool(signal or loop.stopping))
        if signal and not loop.stopping:
            loop.stopping = self._interrupted(runner, signal)

    def before_stopping(self, runner: Runner) -> None:
        """Save the steps taken so far, where no further one is taken."""
        loop = runner.train_loop
        if runner.iter and self.saved_epoch != runner.epoch:
            self.save_at(runner, runner.iter, last=True)
        if not loop.stopping:
            loop.stopping = self._interrupted(runner, max(loop.agreed["signal"]))

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        signals = getattr(runner._train_loop, "signals", None)
        # Several processes stop at the next step of training, where they agree on it.
        if signals and signals.received and not is_distributed() and self.saved_epoch == runner.epoch:
            raise self._interrupted(runner, signals.received)

    @staticmethod
    def _interrupted(runner: Runner, signal: int) -> RunInterruptedError:
        newest = training_checkpoints(runner.work_dir)
        return RunInterruptedError(signal, f"the newest checkpoint is {newest[-1] if newest else 'not written yet'}")

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        missing = [key for key in self.save_best or () if key not in metrics and key != "auto"]
        if missing:
            raise RunStoppedError(f"save_best {missing[0]!r} is no metric: {suggest(missing[0], list(metrics))}")
        super().after_val_epoch(runner, metrics)

    def save_at(self, runner: Runner, step: int, last: bool = False) -> None:
        """Write a checkpoint of so many steps, from where a sampler can go on; all processes call it.

        Args:
            runner: of the run.
            step: how many steps it has taken.
            last: no other one will come.
        """
        if hasattr(runner.train_dataloader.sampler, "start"):
            self._save(runner, f"epoch_{runner.epoch}_iter_{step}.pth", {"epoch": runner.epoch, "iter": step}, last)

    @staticmethod
    def _put_aside_later_ones(runner: Runner) -> None:
        """Move the checkpoints of another run out of the way of this one, which begins before them.

        Else they would be the newest in the folder, and what a resume goes on from.
        """
        later = [p for p in training_checkpoints(runner.work_dir) if training_progress(p)[0] > runner.epoch]
        later += [p for p in training_checkpoints(runner.work_dir) if training_progress(p)[1] > runner.iter]
        if not runner._resume:
            later = [*training_checkpoints(runner.work_dir), *Path(runner.work_dir).glob("best_*.pth")]
        names = (f"before_{runner.timestamp}" + (f"_{n}" if n > 1 else "") for n in count(1))
        folder = next(path for path in map(Path(runner.work_dir).joinpath, names) if not path.exists())
        try:
            for path in dict.fromkeys(later):
                folder.mkdir(exist_ok=True)
                path.rename(folder / path.name)
        except OSError as error:
            runner.logger.warning(f"cannot tidy up {runner.work_dir}: {error}")
        if later:
            runner.logger.warning(f"the checkpoints of another run in {runner.work_dir} are in {folder.name} now")

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """MMEngine's, for a whole epoch; this one deletes nothing before the new file is safe."""
        self.saved_epoch = step
        self._save(runner, f"epoch_{step}.pth", meta, last=True)

    def _save(self, runner: Runner, name: str, meta: dict, last: bool) -> None:
        in_trouble = self._in_trouble(runner)
        if in_trouble and not (last and all(p.isfinite().all() for p in runner.model.parameters())):
            runner.logger.warning(f"{name} is not written: the last step was skipped, its numbers not being finite")
            return
        self.last_ckpt = str(Path(self.out_dir) / name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        # Only what this run has written is ever deleted; a resume knows of it by the checkpoint.
        self.written = [other for other in self.written if other != name] + [name]
        runner.message_hub.update_info("checkpoints", list(self.written))
        written = runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=False,
            backend_args=self.backend_args,
        )
        self.saved_at = time.monotonic()
        if is_main_process() and written and not in_trouble:
            self._delete_older(runner, Path(self.last_ckpt))

    def _delete_older(self, runner: Runner, newest: Path) -> None:
        reached = training_progress(newest)
        own = [path for path in training_checkpoints(self.out_dir) if path.name in self.written]
        older = [path for path in own if training_progress(path) < reached]
        epochs = [path for path in older if training_progress(path)[1] == 0]
        more = self.keep if reached[1] else self.keep - 1  # the newest is of an epoch's end, or is kept besides
        kept = {*older[-1:], *(epochs if self.keep < 0 else epochs[max(len(epochs) - more, 0) :])}
        try:
            AtomicBackend().put(str(newest).encode(), Path(self.out_dir) / "last_checkpoint")  # for MMEngine's tools
            for path in older:
                if path not in kept:
                    path.unlink(missing_ok=True)
                    self.written.remove(path.name)
        except OSError as error:
            runner.logger.warning(f"cannot tidy up {self.out_dir}: {error}")

    @staticmethod
    def _in_trouble(runner: Runner) -> bool:
        """Whether the weights may be such that no step can be taken any more: they replace no checkpoint."""
        return bool(getattr(runner.optim_wrapper, "skipped_in_a_row", 0))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        """MMEngine's, which deletes the best one so far before it writes the new one: here, after."""
        if not self.save_best or self._in_trouble(runner):
            return
        info = runner.message_hub.runtime_info
        before = {key: value for key, value in info.items() if key.startswith("best_")}
        paths = self._best_paths()
        self._set_best_paths(dict.fromkeys(paths))
        super()._save_best_checkpoint(runner, metrics)
        current = self._best_paths()
        self._set_best_paths({key: current.get(key) or path for key, path in paths.items()})
        for key, old in paths.items():
            new = current.get(key)
            if new and new != old:
                written = [Path(new).is_file()]
                broadcast_object_list(written)  # the first process's: all must know of the same best one
                if not written[0]:
                    self._set_best_paths({**self._best_paths(), key: old})
                    for name in [name for name in info if name.startswith("best_")]:
                        del info[name]
                    info.update(before)
                    self._save_checkpoint_with_step(runner, runner.epoch, {"epoch": runner.epoch, "iter": runner.iter})
                elif is_main_process() and Path(old or "").is_file():
                    Path(old).unlink()

    def _best_paths(self) -> dict[str, str | None]:
        return dict(self.best_ckpt_path_dict) if hasattr(self, "best_ckpt_path_dict") else {"": self.best_ckpt_path}

    def _set_best_paths(self, paths: dict[str, str | None]) -> None:
        if hasattr(self, "best_ckpt_path_dict"):
            self.best_ckpt_path_dict = paths
        else:
            self.best_ckpt_path = paths[""]

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        meta, hub = checkpoint["meta"], checkpoint["message_hub"]
        meta["model"] = runner.cfg.model.to_dict()
        meta["initialized_from"] = runner.initialized_from
        meta["optimizer"] = optimizer_name(runner.optim_wrapper.optimizer)
        meta["versions"] = describe_machine()["versions"]
        meta["processes"] = runner.world_size
        meta["steps_per_epoch"] = len(runner.train_dataloader)
        info = {key: _as_data(value) for key, value in hub["runtime_info"].items()}
        kept = {key: value for key, value in hub["resumed_keys"].items() if key in info}
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": info, "resumed_keys": kept}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # MMEngine stores absolute paths and would delete the other run's best file after the folder was copied.
        info = (checkpoint.get("message_hub") or {}).get("runtime_info") or {}
        for key in [key for key in info if info[key] is None and key.startswith(("last_ckpt", "best_"))]:
            del info[key]
        for key in info:
            if key == "last_ckpt" or key.startswith("best_ckpt"):
                info[key] = str(Path(runner.work_dir) / Path(info[key]).name)
        # A best checkpoint is deleted when there is a better one: no file of another name may stand in its place.
        for key in [key for key in info if key.startswith("best_ckpt")]:
            if not re.fullmatch(r"best_[\w.-]+_epoch_\d+\.pth", Path(info[key]).name):
                del info[key]
        if runner._resume:
            self.written = [name for name in info.get("checkpoints") or () if training_progress(name)]


def _as_data(value):
    """NumPy numbers and tuples as Python's own numbers and lists."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _as_data(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_data(inner) for inner in value]
    return value
