"""Signals that ask a run to stop, and what all processes of a run agree on."""

import os
import signal
import sys
import threading
import time

import torch
import torch.distributed as dist
from mmengine.dist import is_distributed

from .finite import RunStoppedError

PREEMPTED = 85  # a code of its own: HTCondor's for "a checkpoint is written, start me again"
INTERRUPTED = 130  # the shell's for Ctrl-C
CAUGHT = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


class RunInterruptedError(RunStoppedError):
    """A run that a signal has ended after a whole step. ``code`` is the exit code of its process."""

    def __init__(self, number: int, saved: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}, {saved}; --resume goes on from there")
        self.code = INTERRUPTED if number == signal.SIGINT else PREEMPTED


class Signals:
    """Takes SIGTERM, SIGUSR1 and Ctrl-C down in ``received``, inside its ``with``; a second Ctrl-C ends at once.

    Outside the main thread, where Python allows no handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self.received = 0
        self._time = 0.0
        self._process = os.getpid()
        self._before: dict = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in CAUGHT}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame) -> None:
        if os.getpid() != self._process:
            return  # a worker of the loader that has not yet set handlers of its own
        now = time.monotonic()
        # A launcher hands the terminal's Ctrl-C on to processes that have had it already.
        if number == signal.SIGINT and self.received and now - self._time > 1:
            raise KeyboardInterrupt
        if not self.received:
            self._time = now
            print(f"{signal.Signals(number).name}: stopping after this step, with a checkpoint", file=sys.stderr)
        self.received = self.received or number


class Agreement:
    """The greatest of each process's numbers, known to all at the same iteration.

    With several processes it is that of the iteration before: the exchange goes through the hosts' network while the
    step is computed, so that neither the GPU nor the host waits for it.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if is_distributed() else None
        self._pending: tuple | None = None

    def exchange(self, *numbers: int) -> list[int]:
        """Give this iteration's numbers; return what all agree on. All processes call it at every iteration."""
        if self._group is None:
            return list(numbers)
        agreed = self.settle() or [0] * len(numbers)
        tensor = torch.tensor(numbers)
        self._pending = (dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group, async_op=True), tensor)
        return agreed

    def wait(self) -> None:
        """Wait for all processes to come here: one that ended early would bring down the one that still writes."""
        self.settle()
        if self._group is not None:
            dist.barrier(self._group)

    def settle(self) -> list[int] | None:
        """Wait for the exchange that is under way; return its result, or None if there is none."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        pending[0].wait()
        return pending[1].tolist()
