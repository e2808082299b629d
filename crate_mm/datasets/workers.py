"""What a loader's worker process does about seeds and signals."""

import atexit
import mmap
import os
import signal

from ..registry import FUNCTIONS

GRACE = 60  # seconds in which a process that is to stop takes its step and writes its checkpoint

_leaving = mmap.mmap(-1, 1)  # shared with workers that are forked; 1 once their process is about to end
atexit.register(_leaving.__setitem__, 0, 1)


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
        signal.signal(signal.SIGTERM, _end_later)


def _end_later(number: int, frame) -> None:
    """End at once if the process is ending, which then waits for its workers; else after the time of grace."""
    if _leaving[0]:
        os._exit(0)
    signal.alarm(GRACE)
