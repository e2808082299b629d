"""Handling of untrusted files: bounded reading, bounded data, and sanitized names in messages.

Any external input (a checkpoint, an image, labels, an index, a file name) may be wrong by mistake or malice. Reading
wrong input must raise an error before it uses much memory or time.
"""

import json
import os
import re
import stat
import unicodedata
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

MAX_VALUES = 2_000_000  # numbers, strings, lists, dicts and tensors in a checkpoint, together
MAX_LEVELS = 64  # nesting depth of lists and dicts
_SECRETS = re.compile(
    r"(\b[A-Za-z][A-Za-z0-9+.-]*://)(?:[^\s/?#\"'<>]*@)?([^\s?#\"'<>]*)(?:\?[^\s#\"'<>]*?(?=[:;,.)]*(?:[\s#\"'<>]|$)))?"
)
# Categories of control and format characters. Format characters can reverse the text direction. Surrogates stand for
# bytes that could not be decoded.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def sanitized(text: Any, max_length: int = 200) -> str:
    """Return untrusted text for a message: one line, no control characters, truncated to ``max_length`` characters.

    Control characters are escaped as in Python: ESC as ``\\x1b``, a newline as ``\\n``.
    """
    text = str(text)
    if len(text) > max_length:
        text = f"{text[: max_length * 2 // 3]}...{text[-max_length // 3 :]} ({len(text)} characters)"
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if unicodedata.category(c) in _HIDDEN else c for c in text)


def without_secrets(text: Any) -> str:
    """Return a text with user, password and query removed from its URLs.

    A query may contain a signature that grants access. Call this function before ``sanitized``, which may cut out the
    ``?`` of a long URL and leave a part of its query.
    """
    return _SECRETS.sub(r"\1\2", str(text))


def sanitized_url(address: Any) -> str:
    """Return ``sanitized`` text with user, password and query removed from its URLs."""
    return sanitized(without_secrets(address))


_ABSOLUTE = re.compile(
    r"(?<=')~?/[^']*(?=')|(?<=\")~?/[^\"]*(?=\")"  # in quotes, may contain spaces
    r"|(?:(?<=[\s=,:(\[{'\"])|^)(?:~[\w.-]*)?/[^\s'\",;)\]}/][^\s'\",;)\]}]*"
)


_PATH = re.compile(r"~[\w.-]*/|/|file:|[A-Za-z]:[\\/]|\\\\")  # start of a path, including Windows paths


def public(value: Any, files: Collection[str] = (), is_file: bool = False) -> Any:
    """Return a text or plain data for publication, without private paths and secrets.

    Absolute paths are reduced to their last component. URLs lose user, password, query and fragment: query and fragment
    may be signatures. A ``#sha256=`` fragment is kept.

    Args:
        value: a text, or dicts and lists of texts and other values.
        files: dict keys with file names as values: relative paths are reduced there too.
        is_file: whether ``value`` is a file name.
    """
    if isinstance(value, dict):
        return {key: public(inner, files, is_file or key in files) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(inner, files, is_file) for inner in value]
    if not isinstance(value, str):
        return value
    start, text = ("", value) if is_file else re.fullmatch(r"(-{0,2}\w[\w.-]*=)?(.*)", value, re.S).groups(default="")
    if _PATH.match(text) or (is_file and "://" not in text):  # the whole text is a path
        return start + _name(text)
    if re.match(r"\w+://", text):
        return start + without_secrets(re.split(r"\?|#(?!sha256=)", text, maxsplit=1)[0])
    return start + _ABSOLUTE.sub(lambda path: _name(path[0]), without_secrets(text))


def _name(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1] or path


def sanitized_lines(text: Any, max_length: int = 20_000) -> str:
    """Return a multi-line message of crate_mm with each line ``sanitized``."""
    lines = str(text)[: 2 * max_length].split("\n")
    return "\n".join(sanitized(line, max_length) for line in lines)[: max_length + 100]


def say(*lines: Any) -> None:
    """Print each argument as one sanitized line."""
    for line in lines:
        print(sanitized(line, 100_000), flush=True)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shortened(name: str, max_bytes: int = 120) -> str:
    """Return the first ``max_bytes`` bytes of a name, for use in a file name (at most 255 bytes)."""
    return os.fsencode(name)[:max_bytes].decode(errors="ignore")


def spreadsheet_cell(value: Any) -> Any:
    """Return a value for a CSV file; text that a spreadsheet would read as a formula gets a leading apostrophe."""
    if not isinstance(value, str):
        return value
    value = "".join(_escape(c) if unicodedata.category(c) in ("Cc", "Cs") else c for c in value)
    return f"'{value}" if value.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")) else value


def is_count(value: Any) -> bool:
    """Return whether a value from a file is a nonnegative integer below 2**53."""
    return type(value) is int and 0 <= value < 2**53


@contextmanager
def open_regular(path: str | Path) -> Iterator[BinaryIO]:
    """Open a regular file in binary mode; refuse devices, which may be endless, and pipes, which may block.

    Raises:
        OSError: the file is missing or not a regular file.
    """
    # Without O_NONBLOCK, open() waits for a writer of a pipe.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:  # open() fails on a folder, but leaves the descriptor open
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{sanitized(path)} is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_regular(path: str | Path, max_bytes: int) -> bytes:
    """Read a regular file.

    Raises:
        OSError: the file is missing, not a regular file, or larger than ``max_bytes``.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise OSError(f"{sanitized(path)} has {size:,} bytes, more than the limit of {max_bytes:,}")
        return file.read(size)  # with a size, read() allocates the buffer once


def read_json(text: str | bytes) -> Any:
    """Parse JSON; raise ``ValueError`` if it is invalid or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its lists and dicts are nested too deeply") from None


def walk(value: Any) -> Iterator[tuple[tuple, Any]]:
    """Yield a value and all values in its dicts, lists and tuples, each with the dict keys that lead to it."""
    pending: list[tuple[tuple, Any]] = [((), value)]
    while pending:
        keys, value = pending.pop()
        yield keys, value
        if isinstance(value, dict):
            pending.extend(((*keys, key), inner) for key, inner in value.items())
        elif isinstance(value, (list, tuple)):
            pending.extend((keys, inner) for inner in value)


def check_plain(
    value: Any, allowed: tuple[type, ...] = (), max_values: int = MAX_VALUES, max_levels: int = MAX_LEVELS
) -> None:
    """Raise ``ValueError`` unless a value is plain data of bounded size; a shared object counts at each occurrence.

    Plain data are None, booleans, numbers, strings, lists, tuples, and dicts with string keys.

    Args:
        allowed: further types, whose contents are not checked.
        max_values: limit of the total number of values.
        max_levels: limit of the nesting depth of lists and dicts.
    """
    pending, values = [(value, 0)], 0
    while pending:
        value, level = pending.pop()
        values += 1
        if values > max_values:
            raise ValueError(f"it holds more than {max_values:,} values")
        if isinstance(value, (dict, list, tuple)):
            if level >= max_levels:
                raise ValueError(f"its lists and dicts are nested more than {max_levels} deep")
            if values + len(pending) + len(value) > max_values:
                raise ValueError(f"it holds more than {max_values:,} values")
            if isinstance(value, dict):
                bad_key = next((key for key in value if not isinstance(key, (str, *allowed))), None)
                if bad_key is not None:
                    raise ValueError(f"it has a key of type {type(bad_key).__name__}, expected a string")
                pending.extend((inner, level + 1) for inner in value.values())
            else:
                pending.extend((inner, level + 1) for inner in value)
        elif not (value is None or isinstance(value, (bool, int, float, str, *allowed))):
            raise ValueError(f"it holds {type(value).__name__}, which is not plain data")


def env_number(name: str, default: int | None = None) -> int:
    """Return a nonnegative integer from an environment variable.

    Raises:
        ValueError: the value is invalid, or the variable is unset or empty and there is no default.
    """
    text = os.environ.get(name, "").strip()
    if not text and default is not None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name} in the environment must be a nonnegative integer, got {sanitized(text)!r}")
    return int(text)
