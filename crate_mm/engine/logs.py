"""Logs that may fail without ending the run they are about."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mmengine.hooks
import mmengine.runner
import mmengine.visualization
import numpy as np
import torch
from mmengine.dist import all_reduce, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.visualization import BaseVisBackend
from torch.utils.data import DataLoader

from ..io.files import is_utf8
from ..io.log import print_log
from ..io.untrusted import is_count, read_regular, sanitized
from ..registry import HOOKS, LOG_PROCESSORS, VISUALIZERS
from .mmengine_private import trim

LOG = "vis_data/scalars.json"  # of a launch of a run, in a folder that is named by its time
MOST_BYTES = 2**27  # of such a log: a line of training has some 250
# What MMEngine says of itself: its loggers use its own old FileClient, there is no SyncBN to revert, a line or more for
# each parameter where there is a paramwise_cfg, and at each epoch the experiment's name, which the first line has.
NOISE = (
    "Exp name: ",
    "will be deprecated in future",
    "all SyncBatchNorm (SyncBN) layers",
    "paramwise_options -- ",
    "is skipped since its requires_grad",
)


def drop_mmengine_noise(record: logging.LogRecord) -> bool:
    """A filter that leaves out what MMEngine says of itself."""
    return not any(words in str(record.msg) for words in NOISE)


@contextmanager
def warn_on_oserror(what: str) -> Iterator[None]:
    """Turn an error of the disk into a warning: for what a run can do without."""
    try:
        yield
    except OSError as error:
        print_log(f"cannot write {what}: {error}; training goes on", logger="current", level=logging.ERROR)


@VISUALIZERS.register_module()
class Visualizer(mmengine.visualization.Visualizer):
    """MMEngine's, which leaves a line out of the logs that cannot be written, with a warning.

    TensorBoard writes to no folder whose path is not UTF-8: there it is left out.
    """

    def __init__(
        self,
        name: str = "visualizer",
        image: np.ndarray | None = None,
        vis_backends: list[dict] | None = None,
        save_dir: str | None = None,
        **kwargs,
    ) -> None:
        if save_dir is not None and not is_utf8(save_dir):
            without = [backend for backend in vis_backends or () if _kind(backend) != "TensorboardVisBackend"]
            if len(without) < len(vis_backends or ()):
                said = "there are no logs for TensorBoard, which cannot write to a folder whose path is not UTF-8"
                print_log(f"{said}: {sanitized(save_dir)}", logger="current", level=logging.WARNING)
            vis_backends = without
        super().__init__(name, image, vis_backends, save_dir, **kwargs)

    def add_config(self, *args, **kwargs) -> None:
        with warn_on_oserror("the config to the logs"):
            super().add_config(*args, **kwargs)

    def add_scalars(self, *args, **kwargs) -> None:
        with warn_on_oserror("the log of scalars"):
            super().add_scalars(*args, **kwargs)

    def close(self) -> None:
        with warn_on_oserror("the end of the logs"):
            super().close()


def _kind(backend: dict | BaseVisBackend) -> str:
    kind = backend["type"] if isinstance(backend, dict) else type(backend)
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__


@LOG_PROCESSORS.register_module()
class LogProcessor(mmengine.runner.LogProcessor):
    """MMEngine's, which gives the times of validation tags of their own: those of training count iterations.

    They are means of a batch, which the line on a whole validation or test does not tell.
    A rank is a whole number, which MMEngine's history of scalars makes a real one.
    """

    def get_log_after_iter(self, runner: Runner, batch_idx: int, mode: str) -> tuple:
        tag, text = super().get_log_after_iter(runner, batch_idx, mode)
        ranks = {key: int(value) for key, value in tag.items() if key.endswith("_rank")}
        for key, rank in ranks.items():
            text = text.replace(f"{key}: {tag[key]:.{self.num_digits}f}", f"{key}: {rank}")
        return {**tag, **ranks}, text

    def get_log_after_epoch(self, runner: Runner, batch: int, mode: str, with_non_scalar: bool = False) -> tuple:
        tag, text = super().get_log_after_epoch(runner, batch, mode, with_non_scalar)
        for key in ("time", "data_time", f"{mode}/time", f"{mode}/data_time"):
            if key in tag:
                text = text.replace(f"  {key}: {tag[key]:.{self.num_digits}f}", "")
        return {f"{mode}/{key}" if key in ("time", "data_time") else key: value for key, value in tag.items()}, text


def read_log(file: str | Path, having: str = "") -> Iterator[dict[str, Any]]:
    """Yield the lines of a log of scalars that have a text in them, without those that a killed run has cut off.

    Raises:
        OSError: the log is missing, no regular file, or too large.
    """
    for row in read_regular(file, MOST_BYTES).decode(errors="replace").split("\n"):
        if having in row:
            try:
                line = json.loads(row)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict):
                yield line


def read_launch(line: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a line of a log says of a launch of its run, as ``LoggerHook`` writes it, or None."""
    launch = line.get("launch")
    if not isinstance(launch, dict) or not all(is_count(launch.get(key)) for key in ("number", "epoch", "iter")):
        return None
    parent, run, steps = (launch.get(key) for key in ("parent", "run", "steps_per_epoch"))
    right = parent is None or (is_count(parent) and parent < launch["number"])
    return launch if right and isinstance(run, str | None) and (steps is None or is_count(steps)) else None


def last_launch(work_dir: str | Path) -> int:
    """Return the highest number of the launches that the logs of a work folder name, or 0."""
    numbers = [0]
    for file in Path(work_dir).glob(f"*/{LOG}"):
        with suppress(OSError):
            numbers += [launch["number"] for line in read_log(file, '"launch"') if (launch := read_launch(line))]
    return max(numbers)


@HOOKS.register_module()
class LoggerHook(mmengine.hooks.LoggerHook):
    """MMEngine's, which begins the log of scalars of each launch of a run with a line about the launch.

    The line says where the launch begins and which launch wrote the checkpoint that it goes on from (``parent``, None
    where the run begins, 0 for a checkpoint that does not say it). Launches of a work folder are numbered, and
    checkpoints carry the number of theirs as ``launch`` in the message hub: their order depends on no clock.
    """

    _at_last_step = False

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self._at_last_step = runner.iter + 1 == runner.max_iters

    def end_of_epoch(self, dataloader: DataLoader, batch_idx: int) -> bool:
        return self._at_last_step or super().end_of_epoch(dataloader, batch_idx)

    def before_train(self, runner: Runner) -> None:
        if not is_main_process():  # which alone writes logs and checkpoints
            return
        info = runner.message_hub.runtime_info
        parent = info.get("launch", 0) if runner.is_resuming else None
        parent = parent if is_count(parent) or parent is None else 0
        launch = {
            "number": 1 + max(parent or 0, last_launch(runner.work_dir)),
            "parent": parent,
            "run": info.get("run"),
            "epoch": runner.epoch,
            "iter": runner.iter,
            "resumed_from": Path(runner.start_checkpoint).name if runner.is_resuming else None,
            "steps_per_epoch": len(runner.train_dataloader),
        }
        runner.message_hub.update_info("launch", launch["number"])
        backend = runner.visualizer.get_backend("LocalVisBackend")  # others take numbers alone
        if backend is not None:
            with warn_on_oserror("the log of scalars"):
                backend.add_scalars({"launch": launch}, step=runner.iter)


@HOOKS.register_module()
class IterTimerHook(mmengine.hooks.IterTimerHook):
    """MMEngine's, by a clock that nobody sets: the computer's, which MMEngine reads, may jump during a run."""

    def _before_epoch(self, runner: Runner, mode: str = "train") -> None:
        self.t = time.perf_counter()

    def _before_iter(self, runner: Runner, batch_idx: int, data_batch=None, mode: str = "train") -> None:
        runner.message_hub.update_scalar(f"{mode}/data_time", time.perf_counter() - self.t)

    def _after_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None, mode: str = "train") -> None:
        now = time.perf_counter()
        spent, self.t = now - self.t, now
        runner.message_hub.update_scalar(f"{mode}/time", spent)
        if mode == "train":
            self.time_sec_tot += spent
            eta = self.time_sec_tot / (runner.iter - self.start_iter + 1) * (runner.max_iters - runner.iter - 1)
        else:
            loader = runner.val_dataloader if mode == "val" else runner.test_dataloader
            self.time_sec_test_val += spent
            eta = self.time_sec_test_val / (batch_idx + 1) * (len(loader) - batch_idx - 1)
        runner.message_hub.update_info("eta", eta)


@HOOKS.register_module()
class RuntimeInfoHook(mmengine.hooks.RuntimeInfoHook):
    """MMEngine's hook, which logs the mean of the losses over all processes.

    They are fetched from a GPU, and averaged, all together when they are logged; MMEngine's own fetches those of the
    first process, each at its iteration, for which the host waits until the GPU has nothing left to do.

    Where there are several processes, ``largest_data_time`` is the longest time that one of them has waited for its
    data (seconds a step, averaged over the log's window as ``data_time`` is), and ``largest_data_time_rank`` is that
    process: the others wait for it.
    """

    def __init__(self) -> None:
        self.waiting: list[dict[str, torch.Tensor]] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        norm = getattr(runner.optim_wrapper, "grad_norm", None)
        if norm is not None:
            outputs = {**outputs, "grad_norm": norm}
        self.waiting.append(outputs)
        # LoggerHook, of lower priority, reads them now.
        loggers = [hook for hook in runner.hooks if isinstance(hook, mmengine.hooks.LoggerHook)]
        logged = any(self.every_n_inner_iters(batch_idx, hook.interval) for hook in loggers)
        at_hand = get_world_size() == 1 and not any(value.is_cuda for value in outputs.values())
        ends = self.end_of_epoch(runner.train_dataloader, batch_idx) or runner.iter + 1 == runner.max_iters
        if at_hand or logged or ends:
            self.fetch(runner)

    def fetch(self, runner: Runner) -> None:
        """Hand all that waits to the log, in its order."""
        waiting, self.waiting = self.waiting, []
        columns = {key: torch.stack([row[key].detach() for row in waiting]) for key in waiting[0]}
        if get_world_size() > 1:
            for column in columns.values():
                all_reduce(column, "mean")
            self._compare_data_times(runner)
        columns = {key: column.tolist() for key, column in columns.items()}
        for row in range(len(waiting)):
            super().after_train_iter(runner, row, outputs={key: column[row] for key, column in columns.items()})

    @staticmethod
    def _compare_data_times(runner: Runner) -> None:
        """Hand the largest time of loading, over all processes, and its rank to the log, by one reduction."""
        times = runner.message_hub.log_scalars.get("train/data_time")
        if times is None:  # a config without the timer
            return
        microseconds = int(1e6 * times.mean(runner.log_processor.window_size))
        largest = torch.tensor([microseconds * get_world_size() + get_rank()])  # one number, for them to stay together
        all_reduce(largest, "max")
        microseconds, rank = divmod(largest.item(), get_world_size())
        runner.message_hub.update_scalar("train/largest_data_time", microseconds / 1e6)
        runner.message_hub.update_scalar("train/largest_data_time_rank", rank)


@HOOKS.register_module()
class TrimLogHistory(Hook):
    """Keep the last ``keep`` values of each logged scalar: MMEngine copies the whole history at every iteration."""

    def __init__(self, interval: int = 500, keep: int = 1000) -> None:
        self.interval = interval
        self.keep = keep

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.every_n_train_iters(runner, self.interval):
            for buffer in runner.message_hub.log_scalars.values():
                trim(buffer, self.keep)
