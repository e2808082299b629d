"""Hooks: what happens around the steps of a run."""

import logging
from pathlib import Path

import mmengine.hooks
import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import print_log
from mmengine.runner import Runner, set_random_seed

from ..registry import HOOKS, suggest
from .finite import FiniteCheck, RunStoppedError
from .optim import optimizer_name


@HOOKS.register_module()
class CheckpointHook(mmengine.hooks.CheckpointHook):
    """MMEngine's hook, with files that load without running code and stay right when the work folder moves.

    Files are written in one piece. They hold tensors, numbers, strings, lists and dicts only: the logs' averaging
    windows are left out and start afresh after a resume. The model's config goes in as data under ``meta['model']``.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(backend_args={"backend": "atomic"}, **kwargs)
        if self.args:
            raise ValueError(f"CheckpointHook has no argument {', '.join(self.args)}")
        if not self.by_epoch or self.out_dir is not None or self.filename_tmpl != "epoch_{}.pth":
            # --resume would not find them.
            raise ValueError(
                "CheckpointHook writes epoch_N.pth to the work folder: leave out by_epoch, out_dir and filename_tmpl"
            )

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        missing = [key for key in self.save_best or () if key not in metrics and key != "auto"]
        if missing:
            raise RunStoppedError(f"save_best {missing[0]!r} is no metric: {suggest(missing[0], list(metrics))}")
        super().after_val_epoch(runner, metrics)

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if is_main_process():
            for leftover in Path(runner.work_dir).glob("*.pth.part"):
                leftover.unlink()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint["meta"]["model"] = runner.cfg.model.to_dict()
        checkpoint["meta"]["initialized_from"] = runner.initialized_from
        checkpoint["meta"]["optimizer"] = optimizer_name(runner.optim_wrapper.optimizer)
        hub = checkpoint["message_hub"]
        info = {key: _as_data(value) for key, value in hub["runtime_info"].items()}
        kept = {key: value for key, value in hub["resumed_keys"].items() if key in info}
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": info, "resumed_keys": kept}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # MMEngine stores absolute paths and would delete the other run's best file after the folder was copied.
        info = checkpoint.get("message_hub", {}).get("runtime_info", {})
        for key in info:
            if key == "last_ckpt" or key.startswith("best_ckpt"):
                info[key] = str(Path(runner.work_dir) / Path(info[key]).name)


@HOOKS.register_module()
class SeedEachEpoch(Hook):
    """Seed all random states from (seed, epoch, rank) before each epoch, so that a resumed run repeats what the
    uninterrupted one draws in the model. (The data's own draws are seeded sample by sample.)"""

    def before_train_epoch(self, runner: Runner) -> None:
        set_random_seed((runner.seed * 1_000_003 + runner.epoch * 1_009 + get_rank()) % 2**32)


@HOOKS.register_module()
class StopOnNonFiniteLoss(Hook):
    """Stop a run whose loss is no longer a finite number. (Gradients are the OptimWrapper's to check.)"""

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.check = FiniteCheck("loss")

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        self.check.see(outputs["loss"], runner.iter + 1, runner.optim_wrapper.get_lr()["lr"][0])

    def after_train_epoch(self, runner: Runner) -> None:
        # Before the checkpoint, which is of lower priority.
        self.check.settle()
        if hasattr(runner.optim_wrapper, "check"):
            runner.optim_wrapper.check.settle()


@HOOKS.register_module()
class RuntimeInfoHook(mmengine.hooks.RuntimeInfoHook):
    """MMEngine's hook, which fetches the losses from a GPU all together when they are logged.

    MMEngine's own fetches each at its iteration, for which the host waits until the GPU has nothing left to do.
    """

    def __init__(self) -> None:
        self.waiting: list[dict[str, torch.Tensor]] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        self.waiting.append(outputs)
        # LoggerHook, of lower priority, reads them now.
        logged = any(self.every_n_inner_iters(batch_idx, h.interval) for h in runner.hooks if isinstance(h, LoggerHook))
        on_host = not any(value.is_cuda for value in outputs.values())
        if on_host or logged or self.end_of_epoch(runner.train_dataloader, batch_idx):
            self.fetch(runner)

    def fetch(self, runner: Runner) -> None:
        """Hand all that waits to the log, in its order."""
        waiting, self.waiting = self.waiting, []
        columns = {key: torch.stack([row[key].detach() for row in waiting]).tolist() for key in waiting[0]}
        for row in range(len(waiting)):
            super().after_train_iter(runner, row, outputs={key: column[row] for key, column in columns.items()})


@HOOKS.register_module()
class UnreadableImages(Hook):
    """Report each unreadable image once, by path, and stop the run when there are more than the dataset allows.

    Each process counts its own as they come, and all together at the end of an epoch.
    """

    def __init__(self) -> None:
        self.found: dict[str, dict[int, str]] = {}  # by stage, by position: what was reported

    def _look(self, runner: Runner, dataset, data_batch: dict, stage: str) -> None:
        asked = data_batch.get("unreadable")
        if asked is None or asked.max() < 0:
            return
        found = self.found.setdefault(stage, {})
        for position in asked[asked >= 0].unique().tolist():
            if position not in found:
                found[position] = f"{dataset.path(position)} ({dataset.reason_unreadable(position)})"
                # On the console MMEngine shows of other ranks than the first only errors.
                print_log(
                    f"cannot read {stage} image {found[position]}; another sample takes its place "
                    f"({len(found)} of at most {dataset.max_unreadable})",
                    logger="current",
                    level=logging.ERROR if get_rank() else logging.WARNING,
                )
        self._check(dataset, found, stage)

    def _gather(self, dataset, stage: str) -> None:
        for other in all_gather_object(self.found.get(stage, {})):
            if other:
                self.found.setdefault(stage, {}).update(other)
        self._check(dataset, self.found.get(stage, {}), stage)

    @staticmethod
    def _check(dataset, found: dict[int, str], stage: str) -> None:
        if found and len(found) > dataset.max_unreadable:
            listed = "\n  ".join(found.values())
            raise RunStoppedError(
                f"{len(found)} {stage} images cannot be read, more than max_unreadable={dataset.max_unreadable} "
                f"of the dataset:\n  {listed}"
            )

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._look(runner, runner.train_dataloader.dataset, data_batch, "train")

    def after_train_epoch(self, runner: Runner) -> None:
        self._gather(runner.train_dataloader.dataset, "train")

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._look(runner, runner.val_dataloader.dataset, data_batch, "val")

    def after_val_epoch(self, runner: Runner, metrics=None) -> None:
        self._gather(runner.val_dataloader.dataset, "val")

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._look(runner, runner.test_dataloader.dataset, data_batch, "test")

    def after_test_epoch(self, runner: Runner, metrics=None) -> None:
        self._gather(runner.test_dataloader.dataset, "test")


@HOOKS.register_module()
class TrimLogHistory(Hook):
    """Keep the last ``keep`` values of each logged scalar: MMEngine copies the whole history at every iteration."""

    def __init__(self, interval: int = 500, keep: int = 1000) -> None:
        self.interval = interval
        self.keep = keep

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.every_n_train_iters(runner, self.interval):
            for buffer in runner.message_hub.log_scalars.values():
                buffer._log_history = buffer._log_history[-self.keep :]
                buffer._count_history = buffer._count_history[-self.keep :]


def _as_data(value):
    """NumPy numbers and tuples as Python's own numbers and lists."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _as_data(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_data(inner) for inner in value]
    return value
