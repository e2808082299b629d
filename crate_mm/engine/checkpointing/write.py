"""Build a checkpoint's contents and write them, in the foreground or in a thread."""

import threading
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import mmengine
from mmengine.runner import Runner
from torch import Tensor

from ...checkpoints import CheckpointError, verify_checkpoint, write_checkpoint
from ...datasets.base import dataset_of
from ...io.untrusted import walk


def build_checkpoint(runner: Runner, meta: dict, save_optimizer: bool, save_param_scheduler: bool) -> dict:
    """Return a checkpoint's contents with MMEngine's keys. Its tensors share memory with the model."""
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
            {name: [scheduler.state_dict() for scheduler in group] for name, group in schedulers.items()}
            if isinstance(schedulers, dict)
            else [scheduler.state_dict() for scheduler in schedulers]
        )
    return contents


def to_cpu(contents: dict, copy: bool) -> dict:
    """Return the contents of a checkpoint with its tensors on the CPU.

    Args:
        contents: plain data and tensors. Tensors that share memory share it in the result too.
        copy: whether to copy tensors that are already on the CPU as well, so that training can go on during the write.
    """
    tensors = (value for _, value in walk(contents) if isinstance(value, Tensor))
    not_copied = {id(tensor): tensor.cpu() for tensor in tensors if not (copy and tensor.is_cpu)}
    return deepcopy(contents, not_copied)


class CheckpointWrite:
    """One write of a checkpoint: write, sync, rename, read back; a damaged file is deleted.

    Args:
        contents: the checkpoint's contents, which must not change during the write.
        path: the file to write.
        iteration: the training iteration of the contents.
        on_success: called by the code that waits for the write, if the write succeeds.

    Attributes:
        error: the exception of a failed write, or None.
    """

    def __init__(self, contents: dict, path: Path, iteration: int, on_success: Callable[[], None] | None) -> None:
        self.path, self.iteration, self.on_success = path, iteration, on_success
        self.error: Exception | None = None
        self._contents: dict | None = contents
        # A daemon thread, because a second Ctrl-C must end the program at once.
        self._thread = threading.Thread(target=self.run, name=f"writes {path.name}", daemon=True)

    def start(self) -> None:
        """Start the write in a thread."""
        self._thread.start()

    def run(self) -> None:
        """Write and verify the file; store an exception in ``error``."""
        try:
            write_checkpoint(self._contents, self.path)
            self._contents = None  # free its memory before the file is read back
            verify_checkpoint(self.path)
        except CheckpointError as error:
            self.path.unlink(missing_ok=True)  # a resume would load it as the newest checkpoint
            self.error = error
        except Exception as error:
            self.error = error
        finally:
            self._contents = None

    @property
    def is_running(self) -> bool:
        """Whether the thread is still writing."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Wait until the thread has ended."""
        if self._thread.ident is not None:
            self._thread.join()
