"""Handle signals that ask a run to stop."""

import os
import signal
import threading
import time
from contextlib import suppress

from .finite import RunStoppedError

EXIT_PREEMPTED = 85  # HTCondor's exit code for "checkpoint written, restart the job"
EXIT_INTERRUPTED = 130  # the shell's exit code for Ctrl-C
HANDLED_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


class RunInterruptedError(RunStoppedError):
    """A signal has stopped the run, but never within a step. ``code`` is the exit code of the process."""

    def __init__(self, number: int, saved: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}, {saved}; --resume continues from there")
        self.code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED


class Signals:
    """Context manager that stores the first SIGTERM, SIGUSR1 or Ctrl-C in ``received``; a later Ctrl-C ends the run.

    Outside the main thread, where Python allows no signal handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self.received = 0
        self._time = 0.0
        self._process = os.getpid()
        self._before: dict = {}
        self._wakeup_fd: int | None = None

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in HANDLED_SIGNALS}
            read_fd, self._wakeup_fd = os.pipe()
            os.set_blocking(self._wakeup_fd, False)
            self._wakeup_before = signal.set_wakeup_fd(self._wakeup_fd, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(read_fd,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        if self._wakeup_fd is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._wakeup_fd)
            self._wakeup_fd = None
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame) -> None:
        if os.getpid() != self._process:
            return  # a data-loader worker that has not set its own handlers yet
        now = time.monotonic()
        # Within a second, a launcher may forward the same Ctrl-C again.
        if number == signal.SIGINT and self.received and now - self._time > 1:
            raise KeyboardInterrupt
        if not self.received:
            self._time, self.received = now, number
            with suppress(OSError):  # the same signal may have ended the terminal or the reader of a pipe
                os.write(2, f"{signal.Signals(number).name}: stopping after this step, with a checkpoint\n".encode())

    @staticmethod
    def _watch(read_fd: int) -> None:
        """End the process at the second Ctrl-C if the main thread cannot, for example while it waits for a rank."""
        first = None
        while numbers := os.read(read_fd, 64):
            for _ in range(numbers.count(signal.SIGINT)):
                if first and time.perf_counter() - first > 1:
                    time.sleep(2)
                    os._exit(EXIT_INTERRUPTED)
                first = first or time.perf_counter()
        os.close(read_fd)


def raise_on_signal() -> None:
    """Make SIGTERM and SIGUSR1 raise ``RunInterruptedError`` until ``Signals`` installs its handlers."""

    def end(number: int, frame) -> None:
        raise RunInterruptedError(number, "before the first step")

    for number in HANDLED_SIGNALS:
        if number != signal.SIGINT:
            signal.signal(number, end)
