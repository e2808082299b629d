"""Logs that may fail without ending the run they are about."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import mmengine.hooks
import mmengine.runner
import mmengine.visualization
import numpy as np
import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.visualization import BaseVisBackend

from ..files import is_utf8
from ..registry import HOOKS, LOG_PROCESSORS, VISUALIZERS
from ..untrusted import shown, shown_lines, without_secrets
from .private import trim

# What MMEngine says of itself: its loggers use its own old FileClient, there is no SyncBN to revert, and a line or more
# for each parameter where there is a paramwise_cfg.
NOISE = (
    "will be deprecated in future",
    "all SyncBatchNorm (SyncBN) layers",
    "paramwise_options -- ",
    "is skipped since its requires_grad",
)


def no_noise(record: logging.LogRecord) -> bool:
    """A filter that leaves out what MMEngine says of itself."""
    return not any(words in str(record.msg) for words in NOISE)


def show_names(record: logging.LogRecord) -> bool:
    """A filter that takes from a log's lines what a terminal would act on: names of files and classes hold anything."""
    record.msg, record.args = shown_lines(without_secrets(record.getMessage()), 100_000), ()
    return True


@contextmanager
def survive_full_disk(what: str) -> Iterator[None]:
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
                print_log(f"{said}: {shown(save_dir)}", logger="current", level=logging.WARNING)
            vis_backends = without
        super().__init__(name, image, vis_backends, save_dir, **kwargs)

    def add_config(self, *args, **kwargs) -> None:
        with survive_full_disk("the config to the logs"):
            super().add_config(*args, **kwargs)

    def add_scalars(self, *args, **kwargs) -> None:
        with survive_full_disk("the log of scalars"):
            super().add_scalars(*args, **kwargs)

    def close(self) -> None:
        with survive_full_disk("the end of the logs"):
            super().close()


def _kind(backend: dict | BaseVisBackend) -> str:
    kind = backend["type"] if isinstance(backend, dict) else type(backend)
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__


@LOG_PROCESSORS.register_module()
class LogProcessor(mmengine.runner.LogProcessor):
    """MMEngine's, which gives the times of validation tags of their own: those of training count iterations.

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
        return {f"{mode}/{key}" if key in ("time", "data_time") else key: value for key, value in tag.items()}, text


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
        logged = any(self.every_n_inner_iters(batch_idx, h.interval) for h in runner.hooks if isinstance(h, LoggerHook))
        at_hand = get_world_size() == 1 and not any(value.is_cuda for value in outputs.values())
        if at_hand or logged or self.end_of_epoch(runner.train_dataloader, batch_idx):
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
