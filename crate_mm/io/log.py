"""Logging with untrusted text: control characters are escaped, continuation lines indented."""

import logging
import re
from typing import Any

import mmengine.logging

from .untrusted import sanitized_lines, without_secrets


def print_log(message: Any, logger: logging.Logger | str | None = None, level: int = logging.INFO) -> None:
    """Log a sanitized message with MMEngine's ``print_log``."""
    mmengine.logging.print_log(log_text(message), logger, level)


def sanitize_record(record: logging.LogRecord) -> bool:
    """Sanitize a log record of a library; used as a logging filter."""
    record.msg, record.args = log_text(record.getMessage()), ()
    return True


def log_text(message: Any) -> str:
    """Return a message without control characters and URL secrets; lines after the first are indented."""
    return re.sub(r"\n(?=\S)", "\n  ", sanitized_lines(without_secrets(message), 100_000))
