"""Show the progress of a run: a progress line on a terminal, otherwise lines in the log."""

import atexit
import logging
import sys
import time
from functools import partialmethod
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..io.progress import REDRAW, live_console
from ..registry import HOOKS


class _LastLine(logging.Handler):
    """Logging handler that stores the time of the last log line."""

    def __init__(self) -> None:
        super().__init__()
        self.time = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        self.time = time.monotonic()


@HOOKS.register_module()
class ProgressLine(Hook):
    """Show the progress of an epoch, a validation or a test, on rank 0.

    On a terminal, a line below the log is redrawn at most ten times per second. Elsewhere (a file, CI), the progress is
    logged after ``seconds`` without a log line. The line is drawn between steps, not by a thread: data-loader workers
    could be forked while a thread is drawing.

    Args:
        seconds: longest time without a log line outside a terminal, unless one step takes longer.
    """

    priority = "LOWEST"

    def __init__(self, seconds: float = 10.0) -> None:
        if not seconds > 0:
            raise ValueError(f"ProgressLine: seconds must be above 0, got {seconds!r}")
        self.seconds = seconds
        self.last = _LastLine()
        self.live: Progress | None = None
        self._drawn = 0.0
        self._since: tuple[float, int] = (0.0, 0)
        self._streams: list[tuple[logging.StreamHandler, object]] = []

    # Start ----------------------------------------------------------------------------------------------------------

    def before_train_epoch(self, runner: Runner) -> None:
        done = runner.iter - runner.epoch * len(runner.train_dataloader)  # positive after a mid-epoch resume
        self._begin(runner, f"epoch {runner.epoch + 1}/{runner.max_epochs}", self._steps(runner), done)
        if runner.cfg.get("compile_blocks") and not done and runner.iter == 0:
            runner.logger.info("the first step compiles the model, which takes seconds to minutes")

    def before_val_epoch(self, runner: Runner) -> None:
        self._begin(runner, "validation", len(runner.val_dataloader))

    def before_test_epoch(self, runner: Runner) -> None:
        self._begin(runner, "test", len(runner.test_dataloader))

    # Steps ----------------------------------------------------------------------------------------------------------

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._advance(runner, batch_idx + 1, self._steps(runner), runner.cfg.get("global_batch_size"))

    def after_val_iter(self, runner: Runner, batch_idx: int, *_: Any, stage: str = "val", **__: Any) -> None:
        self._advance(runner, batch_idx + 1, len(getattr(runner, f"{stage}_dataloader")))

    after_test_iter = partialmethod(after_val_iter, stage="test")

    # End ------------------------------------------------------------------------------------------------------------

    def after_train_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.close()

    after_val_epoch = after_test_epoch = after_train_epoch

    def close(self) -> None:
        """Remove the progress line from the terminal."""
        if self.live is not None:
            self.live.stop()
            self.live = None
            atexit.unregister(self.close)
        for handler, stream in self._streams:
            handler.setStream(stream)
        self._streams = []

    @staticmethod
    def _steps(runner: Runner) -> int:
        """Return the number of steps of this epoch; ``max_steps`` may end the run within the epoch."""
        steps = len(runner.train_dataloader)
        return min(steps, runner.max_iters - runner.epoch * steps)

    def _begin(self, runner: Runner, phase: str, total: int, done: int = 0) -> None:
        if not is_main_process():
            return
        self.close()
        self.phase, self._since, self._drawn = phase, (time.monotonic(), done), 0.0
        if self.last not in runner.logger.handlers:
            runner.logger.addHandler(self.last)
        console = live_console(sys.stdout)
        if console is None or console.is_jupyter:  # a notebook shows the log's lines
            return
        self.live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self.task = self.live.add_task(phase, total=total, completed=done, rate="")
        self.live.start()
        atexit.register(self.close)  # restores the terminal's hidden cursor if an error ends the program
        for handler in runner.logger.handlers:  # log lines are printed above the progress line
            if type(handler) is logging.StreamHandler and handler.stream in (sys.stdout, sys.stderr):
                self._streams.append((handler, handler.stream))
                handler.setStream(FileProxy(console, handler.stream))

    def _advance(self, runner: Runner, done: int, total: int, samples: int | None = None) -> None:
        if not is_main_process():
            return
        now, (start, before) = time.monotonic(), self._since
        unit = runner.task.unit
        rate = f"{(done - before) * samples / max(now - start, 1e-9):,.0f} {unit}/s" if samples else ""
        if self.live is not None:
            if now - self._drawn >= REDRAW or done == total:
                self._drawn = now
                self.live.update(self.task, completed=done, rate=rate, refresh=True)
        elif now - self.last.time >= self.seconds:
            runner.logger.info(f"{self.phase}: {done} of {total} steps{', ' + rate if rate else ''}")
