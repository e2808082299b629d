"""Logs that may fail without ending the run they are about."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import mmengine.visualization
from mmengine.logging import print_log

from ..registry import VISUALIZERS
from ..untrusted import shown_lines


def show_names(record: logging.LogRecord) -> bool:
    """A filter that takes from a log's lines what a terminal would act on: names of files and classes hold anything."""
    record.msg, record.args = shown_lines(record.getMessage(), 100_000), ()
    return True


@contextmanager
def survive_full_disk(what: str) -> Iterator[None]:
    """Turn an error of the disk into a warning: for what a run can do without."""
    try:
        yield
    except OSError as error:
        print_log(f"cannot write {what}: {error}; training goes on", logger="current", level=logging.ERROR)


@VISUALIZERS.register_module()
class Visualizer(mmengine.visualization.Visualizer):
    """MMEngine's, which leaves a line out of the logs that cannot be written, with a warning."""

    def add_config(self, *args, **kwargs) -> None:
        with survive_full_disk("the config to the logs"):
            super().add_config(*args, **kwargs)

    def add_scalars(self, *args, **kwargs) -> None:
        with survive_full_disk("the log of scalars"):
            super().add_scalars(*args, **kwargs)

    def close(self) -> None:
        with survive_full_disk("the end of the logs"):
            super().close()
