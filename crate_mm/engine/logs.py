"""Loggers that tolerate write errors, and readers of the scalar log."""

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

LOG = "vis_data/scalars.json"  # scalar log of one launch, in a folder named by the launch's time
MAX_LOG_BYTES = 2**27  # a training line has about 250 bytes
# Messages of MMEngine to drop: the experiment's name at each epoch (the log's first line has it), MMEngine's use of its
# own deprecated FileClient, a missing SyncBN to revert, and the lines on each parameter with a paramwise_cfg.
NOISE = (
    "Exp name: ",
    "will be deprecated in future",
    "all SyncBatchNorm (SyncBN) layers",
    "paramwise_options -- ",
    "is skipped since its requires_grad",
)


def drop_mmengine_noise(record: logging.LogRecord) -> bool:
    """Logging filter that drops MMEngine's messages in ``NOISE``."""
    return not any(text in str(record.msg) for text in NOISE)


@contextmanager
def warn_on_oserror(subject: str) -> Iterator[None]:
    """Log an ``OSError`` instead of raising it, for files that a run does not depend on."""
    try:
        yield
    except OSError as error:
        print_log(f"cannot write {subject}: {error}; training continues", logger="current", level=logging.ERROR)


@VISUALIZERS.register_module()
class Visualizer(mmengine.visualization.Visualizer):
    """MMEngine's Visualizer that logs an error and continues if a log cannot be written.

    TensorBoard requires a UTF-8 path. If the path is not UTF-8, the TensorBoard backend is removed, with a warning.
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
                message = f"no TensorBoard logs: TensorBoard needs a path in UTF-8, got {sanitized(save_dir)}"
                print_log(message, logger="current", level=logging.WARNING)
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
    """MMEngine's LogProcessor with separate tags for the times of validation and test.

    In MMEngine, these times share the tags of training. The text line of a validation or test omits its times, because
    they are per batch. Ranks are logged as integers, although MMEngine's history stores floats.
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
    """Yield the lines of a scalar log that contain ``having``; lines truncated by a killed run are skipped.

    Raises:
        OSError: the log is missing, not a regular file, or too large.
    """
    for row in read_regular(file, MAX_LOG_BYTES).decode(errors="replace").split("\n"):
        if having in row:
            try:
                line = json.loads(row)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict):
                yield line


def read_launch(line: dict[str, Any]) -> dict[str, Any] | None:
    """Return the launch entry that ``LoggerHook`` has written to a line of the scalar log, or None."""
    launch = line.get("launch")
    if not isinstance(launch, dict) or not all(is_count(launch.get(key)) for key in ("number", "epoch", "iter")):
        return None
    parent, run, steps = (launch.get(key) for key in ("parent", "run", "steps_per_epoch"))
    valid = parent is None or (is_count(parent) and parent < launch["number"])
    return launch if valid and isinstance(run, str | None) and (steps is None or is_count(steps)) else None


def last_launch(work_dir: str | Path) -> int:
    """Return the highest launch number in the scalar logs of a work directory, or 0."""
    numbers = [0]
    for file in Path(work_dir).glob(f"*/{LOG}"):
        with suppress(OSError):
            numbers += [launch["number"] for line in read_log(file, '"launch"') if (launch := read_launch(line))]
    return max(numbers)


@HOOKS.register_module()
class LoggerHook(mmengine.hooks.LoggerHook):
    """MMEngine's LoggerHook that writes a line about the launch at the beginning of each scalar log.

    The line has the launch's first epoch and iteration. ``parent`` is the launch that wrote the checkpoint to resume
    from: None for a new run, 0 if the checkpoint does not name its launch. The launches of a work directory are
    numbered, so their order does not depend on a clock. Checkpoints store the number as ``launch`` in the message hub.
    """

    _at_last_step = False

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self._at_last_step = runner.iter + 1 == runner.max_iters

    def end_of_epoch(self, dataloader: DataLoader, batch_idx: int) -> bool:
        return self._at_last_step or super().end_of_epoch(dataloader, batch_idx)

    def before_train(self, runner: Runner) -> None:
        if not is_main_process():  # only rank 0 writes logs and checkpoints
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
        backend = runner.visualizer.get_backend("LocalVisBackend")  # other backends accept numbers only
        if backend is not None:
            with warn_on_oserror("the log of scalars"):
                backend.add_scalars({"launch": launch}, step=runner.iter)


@HOOKS.register_module()
class IterTimerHook(mmengine.hooks.IterTimerHook):
    """MMEngine's IterTimerHook with a monotonic clock: the system clock, which MMEngine uses, may jump."""

    def _before_epoch(self, runner: Runner, mode: str = "train") -> None:
        self.t = time.perf_counter()

    def _before_iter(self, runner: Runner, batch_idx: int, data_batch=None, mode: str = "train") -> None:
        runner.message_hub.update_scalar(f"{mode}/data_time", time.perf_counter() - self.t)

    def _after_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None, mode: str = "train") -> None:
        now = time.perf_counter()
        elapsed, self.t = now - self.t, now
        runner.message_hub.update_scalar(f"{mode}/time", elapsed)
        if mode == "train":
            self.time_sec_tot += elapsed
            eta = self.time_sec_tot / (runner.iter - self.start_iter + 1) * (runner.max_iters - runner.iter - 1)
        else:
            loader = runner.val_dataloader if mode == "val" else runner.test_dataloader
            self.time_sec_test_val += elapsed
            eta = self.time_sec_test_val / (batch_idx + 1) * (len(loader) - batch_idx - 1)
        runner.message_hub.update_info("eta", eta)


@HOOKS.register_module()
class RuntimeInfoHook(mmengine.hooks.RuntimeInfoHook):
    """MMEngine's RuntimeInfoHook that logs the mean of the losses over all ranks.

    Losses are copied from the GPU and averaged when they are logged. MMEngine copies the losses of rank 0 at each
    iteration, so that the host waits for the GPU.

    With several ranks, ``largest_data_time`` is the longest time for which a rank has waited for data, in seconds per
    step, averaged like ``data_time``. ``largest_data_time_rank`` is this rank.
    """

    def __init__(self) -> None:
        self.pending: list[dict[str, torch.Tensor]] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        norm = getattr(runner.optim_wrapper, "grad_norm", None)
        if norm is not None:
            outputs = {**outputs, "grad_norm": norm}
        self.pending.append(outputs)
        # LoggerHook has a lower priority, so it reads the losses later in this iteration.
        loggers = [hook for hook in runner.hooks if isinstance(hook, mmengine.hooks.LoggerHook)]
        is_logged = any(self.every_n_inner_iters(batch_idx, hook.interval) for hook in loggers)
        on_host = get_world_size() == 1 and not any(value.is_cuda for value in outputs.values())
        ends = self.end_of_epoch(runner.train_dataloader, batch_idx) or runner.iter + 1 == runner.max_iters
        if on_host or is_logged or ends:
            self.fetch(runner)

    def fetch(self, runner: Runner) -> None:
        """Log all pending outputs in order."""
        pending, self.pending = self.pending, []
        columns = {key: torch.stack([row[key].detach() for row in pending]) for key in pending[0]}
        if get_world_size() > 1:
            for column in columns.values():
                all_reduce(column, "mean")
            self._compare_data_times(runner)
        columns = {key: column.tolist() for key, column in columns.items()}
        for row in range(len(pending)):
            super().after_train_iter(runner, row, outputs={key: column[row] for key, column in columns.items()})

    @staticmethod
    def _compare_data_times(runner: Runner) -> None:
        """Log the largest data time over all ranks, and its rank, with one reduction."""
        times = runner.message_hub.log_scalars.get("train/data_time")
        if times is None:  # a config without the timer
            return
        microseconds = int(1e6 * times.mean(runner.log_processor.window_size))
        largest = torch.tensor([microseconds * get_world_size() + get_rank()])  # time and rank in one integer
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
