"""Hooks: what happens around the steps of a run."""

import logging

import mmengine.hooks
import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import print_log
from mmengine.runner import Runner, set_random_seed

from ..registry import HOOKS
from ..untrusted import shown
from .finite import ADVICE, FiniteCheck, RunStoppedError, first_wrong_layer
from .loops import TrainLoop


@HOOKS.register_module()
class SeedEachIteration(Hook):
    """Seed all random states from (seed, iteration, rank), so that a resumed run repeats what the uninterrupted one
    draws in the model, from any iteration on and without a stored state. (The data's draws are seeded by sample.)"""

    def before_train_epoch(self, runner: Runner) -> None:
        self._seed(runner)  # the loader's workers take theirs from here

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self._seed(runner)

    @staticmethod
    def _seed(runner: Runner) -> None:
        mixed = np.random.SeedSequence([runner.seed, runner.iter, get_rank()]).generate_state(1)
        set_random_seed(int(mixed[0]))


@HOOKS.register_module()
class StopOnNonFiniteLoss(Hook):
    """Report the steps that the OptimWrapper skips, count them in ``skipped_steps``, and stop when too many are in a
    row. Where it skips none (see its ``max_skipped_steps``), stop at a loss that is not finite.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.check = FiniteCheck("loss")

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        wrapper = runner.optim_wrapper
        lr = wrapper.get_lr()["lr"][0]
        if not getattr(wrapper, "max_skipped_steps", 0):
            self.check.see(outputs["loss"], runner.iter + 1, lr)
        elif wrapper.skipped:
            self._count(runner, data_batch, lr)

    @staticmethod
    def _count(runner: Runner, data_batch: dict[str, torch.Tensor], lr: float) -> None:
        wrapper, hub = runner.optim_wrapper, runner.message_hub
        hub.update_info("skipped_steps", hub.runtime_info.get("skipped_steps", 0) + 1)
        what = f"the gradient norm is not finite at iteration {runner.iter + 1} (learning rate {lr:.3g})"
        if not wrapper.skipped_in_a_row:
            runner.logger.info(f"{what}: the step is skipped, and the gradient scaler tries half its scale")
            return
        in_a_row = f"{wrapper.skipped_in_a_row} of at most {wrapper.max_skipped_steps} in a row"
        if wrapper.skipped_in_a_row < wrapper.max_skipped_steps:
            runner.logger.warning(f"{what}: the step is skipped ({in_a_row})")
            return
        model = getattr(runner.model, "module", runner.model)
        with wrapper.optim_context(model):  # in the precision of the steps
            found = all_gather_object(first_wrong_layer(model, data_batch, wrapper.wrong_parameters))
        rank, (_, where) = min(enumerate(found), key=lambda finding: finding[1][0])
        on_process = f"on process {rank} " if len(found) > 1 else ""
        raise RunStoppedError(f"{what}, {in_a_row}; {on_process}{where}: {ADVICE}")

    def after_train_epoch(self, runner: Runner) -> None:
        # Before the checkpoint, which is of lower priority.
        self.check.settle()
        if hasattr(runner.optim_wrapper, "check"):
            runner.optim_wrapper.check.settle()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.after_train_epoch(runner)


@HOOKS.register_module()
class RuntimeInfoHook(mmengine.hooks.RuntimeInfoHook):
    """MMEngine's hook, which fetches losses and gradient norms from a GPU all together when they are logged.

    MMEngine's own fetches each at its iteration, for which the host waits until the GPU has nothing left to do.
    """

    def __init__(self) -> None:
        self.waiting: list[dict[str, torch.Tensor]] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        norm = getattr(runner.optim_wrapper, "grad_norm", None)
        if norm is not None:
            outputs = {**outputs, "grad_norm": norm}
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

    Each process reports its own as they come. In training, all together are counted at each step.
    """

    def __init__(self) -> None:
        self.found: dict[str, dict[int, str]] = {}  # by stage, by position: what was reported
        self.known_to_all = 0  # how many of the training images that were found

    def _look(self, dataset, data_batch: dict, stage: str) -> None:
        asked = data_batch.get("unreadable")
        if asked is None or asked.max() < 0:
            return
        found = self.found.setdefault(stage, {})
        for position in asked[asked >= 0].unique().tolist():
            if position not in found:
                found[position] = f"{shown(dataset.path(position))} ({shown(dataset.reason_unreadable(position))})"
                # On the console MMEngine shows of other ranks than the first only errors.
                print_log(
                    f"cannot read {stage} image {found[position]}; another sample takes its place "
                    f"({len(found)} of at most {dataset.max_unreadable})",
                    logger="current",
                    level=logging.ERROR if get_rank() else logging.WARNING,
                )

    def _too_many(self, dataset, stage: str) -> RunStoppedError | None:
        found = self.found.get(stage, {})
        if len(found) <= dataset.max_unreadable:
            return None
        listed = "\n  ".join(found.values())
        return RunStoppedError(
            f"{len(found)} {stage} images cannot be read, more than max_unreadable={dataset.max_unreadable} "
            f"of the dataset:\n  {listed}"
        )

    def _gather(self, dataset, stage: str) -> RunStoppedError | None:
        """Let all processes know what each has found; return the error if that is too many. All of them call it."""
        found = self.found.setdefault(stage, {})
        for other in all_gather_object(found):
            found.update(other)
        return self._too_many(dataset, stage)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        dataset, loop = runner.train_dataloader.dataset, runner.train_loop
        self._look(dataset, data_batch, "train")
        if isinstance(loop, TrainLoop):
            loop.says["unreadable"] = len(self.found.get("train", ())) - self.known_to_all
            if self.known_to_all + sum(loop.agreed["unreadable"]) > dataset.max_unreadable:
                loop.stopping = self._gather(dataset, "train")

    def after_train_epoch(self, runner: Runner) -> None:
        error = self._gather(runner.train_dataloader.dataset, "train")
        self.known_to_all = len(self.found["train"])
        if isinstance(runner.train_loop, TrainLoop):
            runner.train_loop.says["unreadable"] = 0
        if error:
            raise error

    def _after_iter(self, dataset, data_batch: dict, stage: str) -> None:
        self._look(dataset, data_batch, stage)
        error = self._too_many(dataset, stage)
        if error:
            raise error

    def _after_epoch(self, dataset, stage: str) -> None:
        error = self._gather(dataset, stage)
        if error:
            raise error

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._after_iter(runner.val_dataloader.dataset, data_batch, "val")

    def after_val_epoch(self, runner: Runner, metrics=None) -> None:
        self._after_epoch(runner.val_dataloader.dataset, "val")

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._after_iter(runner.test_dataloader.dataset, data_batch, "test")

    def after_test_epoch(self, runner: Runner, metrics=None) -> None:
        self._after_epoch(runner.test_dataloader.dataset, "test")


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
