"""Progress bar of a function that loops over many items, on a terminal or in a notebook."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from importlib.util import find_spec
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

DELAY = 1.0  # seconds before the bar appears: short loops show no bar
REDRAW = 0.1  # seconds between two updates

T = TypeVar("T")


def live_console(file: TextIO | None) -> Console | None:
    """Return a console on which a line can be redrawn: a stream's terminal or a notebook; None if there is neither.

    Python's standard streams are None if the program was started with closed streams, as some versions of cron do.
    """
    if file is None:
        return None
    console = Console(file=file)
    if console.is_jupyter:  # Rich needs ipywidgets there
        return console if find_spec("ipywidgets") else None
    # With FORCE_COLOR, Rich would write cursor movements to a file.
    return console if file.isatty() and console.is_terminal and not console.is_dumb_terminal else None


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield items, with a progress bar on standard error after the first second.

    The bar is drawn between items, not by a thread: data-loader workers could be forked while a thread is drawing.

    Args:
        items: items of the loop.
        description: text before the bar.
        total: number of items (default: their length, if they have one).
    """
    console = live_console(sys.stderr)
    if console is None:
        yield from items
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    fixed = {"auto_refresh": False, "transient": True, "redirect_stdout": False, "redirect_stderr": False}
    bar = Progress(*columns, console=console, **fixed)
    total = len(items) if total is None and isinstance(items, Sized) else total
    task, due = bar.add_task(description, total=total), time.monotonic() + DELAY
    try:
        for item in items:
            yield item
            bar.advance(task)
            if time.monotonic() >= due:
                bar.start()
                bar.refresh()
                due = time.monotonic() + REDRAW
    finally:
        bar.stop()
