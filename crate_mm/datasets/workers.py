"""Seeds and signals in a loader's worker processes."""

import mmap
import os
import signal
from multiprocessing import util

from ..registry import FUNCTIONS

GRACE = 60  # seconds for a stopping process to finish its step and write its checkpoint


class _ExitFlag:
    """Flag in shared memory that tells forked workers that their parent process is exiting and waits for them."""

    def __init__(self) -> None:
        self.mine = self.of_parent = mmap.mmap(-1, 1)
        self.watch()
        util.register_after_fork(self, _ExitFlag.renew)

    def renew(self) -> None:
        self.of_parent, self.mine = self.mine, mmap.mmap(-1, 1)
        self.watch()

    def watch(self) -> None:
        util.Finalize(None, self.mine.__setitem__, (0, 1), exitpriority=100)  # before workers are terminated


_exit_flag = _ExitFlag()


@FUNCTIONS.register_module()
def init_worker(worker_id: int) -> None:
    """Keep PyTorch's seed of a worker, and leave the handling of signals to the parent process.

    This function replaces MMEngine's, which gives each worker the same seed in every epoch, so that augmentations
    repeat. PyTorch has already given the worker a new seed for this epoch.

    Schedulers and terminals send signals to every process of a job. If a worker exited immediately, the training
    process would fail before it could finish its step and save.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, _exit_after_grace)


def _exit_after_grace(number: int, frame) -> None:
    """Exit now if the parent process is exiting and waits for its workers; else after ``GRACE`` seconds."""
    if _exit_flag.of_parent[0]:
        os._exit(0)
    signal.alarm(GRACE)
