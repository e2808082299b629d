"""What a loader's worker process does about seeds and signals."""

import mmap
import os
import signal
from multiprocessing import util

from ..registry import FUNCTIONS

GRACE = 60  # seconds in which a process that is to stop takes its step and writes its checkpoint


class _ExitFlag:
    """Tells forked workers, through memory that they share, that their process is about to end and to wait for them."""

    def __init__(self) -> None:
        self.mine = self.of_parent = mmap.mmap(-1, 1)
        self.watch()
        util.register_after_fork(self, _ExitFlag.renew)

    def renew(self) -> None:
        self.of_parent, self.mine = self.mine, mmap.mmap(-1, 1)
        self.watch()

    def watch(self) -> None:
        util.Finalize(None, self.mine.__setitem__, (0, 1), exitpriority=100)  # before the workers are terminated


_exit_flag = _ExitFlag()


@FUNCTIONS.register_module()
def init_worker(worker_id: int) -> None:
    """Leave a worker its seed, and signals to its process.

    It stands in for MMEngine's own function, which gives each worker the same seed in every epoch and so repeats the
    augmentations; PyTorch has seeded the worker from the epoch already.

    A scheduler or a terminal sends its signals to every process of a job. A worker that died of one at once would take
    the process down that wants to finish its step and save.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, _exit_after_grace)


def _exit_after_grace(number: int, frame) -> None:
    """End at once if the process is ending, which then waits for its workers; else after the time of grace."""
    if _exit_flag.of_parent[0]:
        os._exit(0)
    signal.alarm(GRACE)
