"""The log, in which no name from a file acts on a terminal or begins a line."""

import logging
import re
from typing import Any

import mmengine.logging

from .untrusted import shown_lines, without_secrets


def print_log(message: Any, logger: logging.Logger | str | None = None, level: int = logging.INFO) -> None:
    """Log as MMEngine's ``print_log`` does, a message of several lines with all but the first moved in."""
    mmengine.logging.print_log(log_text(message), logger, level)


def sanitize_record(record: logging.LogRecord) -> bool:
    """A filter that does the same for what a library logs."""
    record.msg, record.args = log_text(record.getMessage()), ()
    return True


def log_text(message: Any) -> str:
    """A message without what a terminal acts on or what opens a signed address; lines after the first are moved in."""
    return re.sub(r"\n(?=\S)", "\n  ", shown_lines(without_secrets(message), 100_000))
