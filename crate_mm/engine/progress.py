"""How far a run is: a line that moves on a terminal, and else lines in the log, so that it is never long silent."""

import atexit
import logging
import sys
import time
from collections.abc import Sequence

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..registry import HOOKS

REDRAW = 0.1  # seconds between two drawings of the line


class _LastLine(logging.Handler):
    """Notes when the last line of a log was written."""

    def __init__(self) -> None:
        super().__init__()
        self.time = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        self.time = time.monotonic()


@HOOKS.register_module()
class ProgressLine(Hook):
    """Say how far an epoch, a validation or a test is.

    On a terminal it is a line below the log, redrawn at most ten times a second. Elsewhere (a file, CI) a line is added
    to the log where there was none for some seconds. It is drawn between steps and by no thread, in whose work a
    loader's workers could be forked. Process 0 alone says it.

    Args:
        seconds: how long the log may be silent where it is no terminal, as far as single steps are shorter.
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

    # Beginnings -----------------------------------------------------------------------------------------------------

    def before_train_epoch(self, runner: Runner) -> None:
        done = runner.iter - runner.epoch * len(runner.train_dataloader)  # above 0 after a resume
        self._begin(runner, f"epoch {runner.epoch + 1}/{runner.max_epochs}", self._steps(runner), done)
        if runner.cfg.get("compile_blocks") and not done and runner.iter == 0:
            runner.logger.info("the first step compiles the model, which takes from some seconds to minutes")

    def before_val_epoch(self, runner: Runner) -> None:
        self._begin(runner, "validation", len(runner.val_dataloader))

    def before_test_epoch(self, runner: Runner) -> None:
        self._begin(runner, "test", len(runner.test_dataloader))

    # Steps ----------------------------------------------------------------------------------------------------------

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._advance(runner, batch_idx + 1, self._steps(runner), runner.cfg.get("global_batch_size"))

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: Sequence | None = None) -> None:
        self._advance(runner, batch_idx + 1, len(runner.val_dataloader))

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: Sequence | None = None) -> None:
        self._advance(runner, batch_idx + 1, len(runner.test_dataloader))

    # Ends -----------------------------------------------------------------------------------------------------------

    def after_train_epoch(self, runner: Runner) -> None:
        self.close()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.close()

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.close()

    def close(self) -> None:
        """Take the line away, however the run has ended."""
        if self.live is not None:
            self.live.stop()
            self.live = None
            atexit.unregister(self.close)
        for handler, stream in self._streams:
            handler.setStream(stream)
        self._streams = []

    @staticmethod
    def _steps(runner: Runner) -> int:
        """Return the number of steps of this epoch, in which a run of ``max_steps`` may end."""
        steps = len(runner.train_dataloader)
        return min(steps, runner.max_iters - runner.epoch * steps)

    def _begin(self, runner: Runner, what: str, total: int, done: int = 0) -> None:
        if not is_main_process():
            return
        self.close()
        self.what, self._since, self._drawn = what, (time.monotonic(), done), 0.0
        if self.last not in runner.logger.handlers:
            runner.logger.addHandler(self.last)
        console = Console(file=sys.stdout)
        # FORCE_COLOR would have Rich move the cursor in a file.
        if not console.file.isatty() or not console.is_terminal or console.is_dumb_terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self.live = Progress(
            *columns,
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self.task = self.live.add_task(what, total=total, completed=done, rate="")
        self.live.start()
        atexit.register(self.close)  # an error may end the program, and the terminal's cursor is hidden
        for handler in runner.logger.handlers:  # what is logged goes above the line
            if type(handler) is logging.StreamHandler and handler.stream in (sys.stdout, sys.stderr):
                self._streams.append((handler, handler.stream))
                handler.setStream(FileProxy(console, handler.stream))

    def _advance(self, runner: Runner, done: int, total: int, images: int | None = None) -> None:
        if not is_main_process():
            return
        now, (start, before) = time.monotonic(), self._since
        rate = f"{(done - before) * images / max(now - start, 1e-9):,.0f} images/s" if images else ""
        if self.live is not None:
            if now - self._drawn >= REDRAW or done == total:
                self._drawn = now
                self.live.update(self.task, completed=done, rate=rate, refresh=True)
        elif now - self.last.time >= self.seconds:
            runner.logger.info(f"{self.what}: {done} of {total} steps{', ' + rate if rate else ''}")
