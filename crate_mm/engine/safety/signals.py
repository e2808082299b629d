"""Signals that ask a run to stop."""

import os
import signal
import threading
import time
from contextlib import suppress

from .finite import RunStoppedError

EXIT_PREEMPTED = 85  # a code of its own: HTCondor's for "a checkpoint is written, start me again"
EXIT_INTERRUPTED = 130  # the shell's for Ctrl-C
HANDLED_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


class RunInterruptedError(RunStoppedError):
    """A run that a signal has ended after a whole step. ``code`` is the exit code of its process."""

    def __init__(self, number: int, saved: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}, {saved}; --resume goes on from there")
        self.code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED


class Signals:
    """Takes SIGTERM, SIGUSR1 and Ctrl-C down in ``received``, inside its ``with``; a second Ctrl-C ends at once.

    Outside the main thread, where Python allows no handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self.received = 0
        self._time = 0.0
        self._process = os.getpid()
        self._before: dict = {}
        self._told: int | None = None

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in HANDLED_SIGNALS}
            heard, self._told = os.pipe()
            os.set_blocking(self._told, False)
            self._wakeup_before = signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(heard,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        if self._told is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._told)
            self._told = None
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
            self._time, self.received = now, number
            with suppress(OSError):  # the terminal, or what this was piped into, may have ended by the same signal
                os.write(2, f"{signal.Signals(number).name}: stopping after this step, with a checkpoint\n".encode())

    @staticmethod
    def _watch(heard: int) -> None:
        """End the process at the second Ctrl-C where the main thread cannot, as it waits for another process, say."""
        first = None
        while numbers := os.read(heard, 64):
            for _ in range(numbers.count(signal.SIGINT)):
                if first and time.perf_counter() - first > 1:
                    time.sleep(2)
                    os._exit(EXIT_INTERRUPTED)
                first = first or time.perf_counter()
        os.close(heard)


def raise_on_signal() -> None:
    """Let SIGTERM and SIGUSR1 end the program at once, by a ``RunInterruptedError``, until ``Signals`` takes over."""

    def end(number: int, frame) -> None:
        raise RunInterruptedError(number, "before the first step")

    for number in HANDLED_SIGNALS:
        if number != signal.SIGINT:
            signal.signal(number, end)
