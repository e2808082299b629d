"""A checkpoint on its way to the disk: what it holds, and its writing, which may go on beside training."""

import copy
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mmengine
from mmengine.runner import Runner
from torch import Tensor

from ...checkpoints import CheckpointError, verify_checkpoint, write_checkpoint
from ...datasets.base import dataset_of


def build_checkpoint(runner: Runner, meta: dict, save_optimizer: bool, save_param_scheduler: bool) -> dict:
    """What a checkpoint of a run holds, with the keys of MMEngine's; its tensors are those that training changes."""
    meta = {
        **meta,
        "cfg": runner.cfg.pretty_text,
        "seed": runner.seed,
        "experiment_name": runner.experiment_name,
        "time": time.strftime("%Y%m%d_%H%M%S"),
        "mmengine_version": mmengine.__version__,
    }
    if metainfo := dataset_of(runner.train_dataloader.dataset).metainfo:
        meta["dataset_meta"] = metainfo
    contents = {"meta": meta, "state_dict": runner.task.state_dict(), "message_hub": runner.message_hub.state_dict()}
    if save_optimizer:
        contents["optimizer"] = runner.optim_wrapper.state_dict()
    if save_param_scheduler and runner.param_schedulers is not None:
        schedulers = runner.param_schedulers
        contents["param_schedulers"] = (
            {name: [each.state_dict() for each in group] for name, group in schedulers.items()}
            if isinstance(schedulers, dict)
            else [each.state_dict() for each in schedulers]
        )
    return contents


def to_cpu(contents: dict, snapshot: bool) -> dict:
    """The contents of a checkpoint with its tensors on the CPU.

    Args:
        contents: plain data and tensors. Tensors that share memory share it in the result too.
        snapshot: whether tensors that are on the CPU already are copied, so that training may go on.
    """
    taken = {id(tensor): tensor.cpu() for tensor in _tensors(contents) if not (snapshot and tensor.is_cpu)}
    return copy.deepcopy(contents, taken)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)


class CheckpointWrite:
    """The writing of a checkpoint, which is synced, renamed and read back; what is damaged then is deleted.

    Args:
        contents: which nothing changes meanwhile.
        path: of the file.
        iteration: at which the contents are.
        then: called by whoever has waited for the writing, if it has succeeded.

    ``error`` is what it failed with, or None.
    """

    def __init__(self, contents: dict, path: Path, iteration: int, then: Callable[[], None] | None) -> None:
        self.path, self.iteration, self.then = path, iteration, then
        self.error: Exception | None = None
        self._contents: dict | None = contents
        # A second Ctrl-C ends the program at once, so the thread may not hold it up.
        self._thread = threading.Thread(target=self.run, name=f"writes {path.name}", daemon=True)

    def start(self) -> None:
        """Let it go on beside training."""
        self._thread.start()

    def run(self) -> None:
        """Write the file, and note an error."""
        try:
            write_checkpoint(self._contents, self.path)
            self._contents = None  # its memory, before the file is read back
            verify_checkpoint(self.path)
        except CheckpointError as error:
            self.path.unlink(missing_ok=True)  # it would be taken for the newest one
            self.error = error
        except Exception as error:
            self.error = error
        finally:
            self._contents = None

    @property
    def is_running(self) -> bool:
        """Whether a thread still writes."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Wait for its end."""
        if self._thread.ident is not None:
            self._thread.join()
