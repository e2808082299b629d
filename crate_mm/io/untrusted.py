"""What every file from outside passes: bounded reading, bounded data, and names that are shown as names.

A file from outside (a checkpoint, an image, labels, an index, a file's own name) is data. It may be wrong by mistake or
by malice; either ends in one sentence, before the memory or the time that it asks for is spent.
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

MOST_VALUES = 2_000_000  # of a checkpoint's numbers, names, lists and dicts, its tensors counted as one each
MOST_LEVELS = 64  # of lists and dicts in one another
# Control characters, and those that turn the direction of what follows; surrogates stand for bytes that are no text.
_SECRETS = re.compile(
    r"(\b[A-Za-z][A-Za-z0-9+.-]*://)(?:[^\s/?#\"'<>]*@)?([^\s?#\"'<>]*)(?:\?[^\s#\"'<>]*?(?=[:;,.)]*(?:[\s#\"'<>]|$)))?"
)
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def sanitized(text: Any, most: int = 200) -> str:
    """A name from outside in a message: on one line, without control characters, and cut to ``most`` characters.

    What a terminal would act on is written as Python writes it: ESC as ``\\x1b``, a newline as ``\\n``.
    """
    text = str(text)
    if len(text) > most:
        text = f"{text[: most * 2 // 3]}...{text[-most // 3 :]} ({len(text)} characters)"
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if unicodedata.category(c) in _HIDDEN else c for c in text)


def without_secrets(text: Any) -> str:
    """A text whose addresses have lost user, password and query: a query may be a signature that opens the file.

    ``sanitized`` may cut the ``?`` out of a long address: ``shown_address`` calls this first.
    """
    return _SECRETS.sub(r"\1\2", str(text))


def shown_address(address: Any) -> str:
    """As ``sanitized``, for what is an address or may be one: without user, password and query."""
    return sanitized(without_secrets(address))


_ABSOLUTE = re.compile(
    r"(?<=')~?/[^']*(?=')|(?<=\")~?/[^\"]*(?=\")"  # in quotes, where it may hold spaces
    r"|(?:(?<=[\s=,:(\[{'\"])|^)(?:~[\w.-]*)?/[^\s'\",;)\]}/][^\s'\",;)\]}]*"
)


_PATH = re.compile(r"~[\w.-]*/|/|file:|[A-Za-z]:[\\/]|\\\\")  # the beginning of a text that is a path, Windows' too


def public(value: Any, files: Collection[str] = (), is_file: bool = False) -> Any:
    """Return a path, an address, an argument of a command, a sentence, or plain data with such, as others may read it.

    Of absolute paths the name alone is left, without the user's folders. Addresses lose user, password and what stands
    behind '?' or '#', which may be a signature; a hash of the file stays.

    Args:
        value: a text, or dicts and lists of texts and other values.
        files: keys of dicts whose texts are names of files, so that relative paths lose their folders too.
        is_file: whether ``value`` is the name of a file.
    """
    if isinstance(value, dict):
        return {key: public(inner, files, is_file or key in files) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(inner, files, is_file) for inner in value]
    if not isinstance(value, str):
        return value
    start, text = ("", value) if is_file else re.fullmatch(r"(-{0,2}\w[\w.-]*=)?(.*)", value, re.S).groups(default="")
    if _PATH.match(text) or (is_file and "://" not in text):  # all of it is a path, with spaces and quotes
        return start + _name(text)
    if re.match(r"\w+://", text):
        return start + without_secrets(re.split(r"\?|#(?!sha256=)", text, maxsplit=1)[0])
    return start + _ABSOLUTE.sub(lambda path: _name(path[0]), without_secrets(text))


def _name(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1] or path


def shown_lines(text: Any, most: int = 20_000) -> str:
    """As ``sanitized``, for a message of our own that has several lines: these stay."""
    lines = str(text)[: 2 * most].split("\n")
    return "\n".join(sanitized(line, most) for line in lines)[: most + 100]


def say(*lines: Any) -> None:
    """Print a message, each argument as one line, whatever names are in it."""
    for line in lines:
        print(sanitized(line, 100_000), flush=True)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shortened(name: str, most: int = 120) -> str:
    """The start of a name that becomes a part of a file's, which has 255 bytes at most."""
    return os.fsencode(name)[:most].decode(errors="ignore")


def spreadsheet_cell(value: Any) -> Any:
    """A value for a CSV file: a text that a spreadsheet would take for a formula gets an apostrophe before it."""
    if not isinstance(value, str):
        return value
    value = "".join(_escape(c) if unicodedata.category(c) in ("Cc", "Cs") else c for c in value)
    return f"'{value}" if value.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")) else value


def is_count(value: Any) -> bool:
    """Return whether a value from a file is a whole number that counts something."""
    return type(value) is int and 0 <= value < 2**53


@contextmanager
def open_regular(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file that is a file: no device, which may have no end, and no pipe, which may have no beginning.

    Raises:
        OSError: it is missing, or of another kind.
    """
    # A pipe without a writer would keep even open() waiting.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:  # open() itself would leave the descriptor of a folder open
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{sanitized(path)} is no regular file")
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_regular(path: str | Path, most_bytes: int) -> bytes:
    """Read a file that ``open_regular`` opens.

    Raises:
        OSError: it is missing, of another kind, or larger than ``most_bytes``.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise OSError(f"{sanitized(path)} has {size:,} bytes, more than the {most_bytes:,} that are read")
        return file.read(size)  # a larger number would be set aside in memory first


def read_json(text: str | bytes) -> Any:
    """Parse JSON; raise ``ValueError`` where it is none, or nested so deeply that Python cannot follow."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its lists and dicts are nested too deeply") from None


def check_plain(
    value: Any, allowed: tuple[type, ...] = (), most_values: int = MOST_VALUES, most_levels: int = MOST_LEVELS
) -> None:
    """Raise ``ValueError`` unless a value is plain data of a bounded size, what is shared being counted each time.

    Plain are None, booleans, numbers, strings, lists, tuples, and dicts with strings as keys.

    Args:
        allowed: further types of values, which are not looked into.
        most_values: how many there may be in all.
        most_levels: how deep lists and dicts may be in one another.
    """
    left, values = [(value, 0)], 0
    while left:
        value, level = left.pop()
        values += 1
        if values > most_values:
            raise ValueError(f"it holds more than {most_values:,} values")
        if isinstance(value, (dict, list, tuple)):
            if level >= most_levels:
                raise ValueError(f"its lists and dicts are nested more than {most_levels} deep")
            if values + len(left) + len(value) > most_values:
                raise ValueError(f"it holds more than {most_values:,} values")
            if isinstance(value, dict):
                wrong = next((key for key in value if not isinstance(key, (str, *allowed))), None)
                if wrong is not None:
                    raise ValueError(f"it has a key that is no name, but {type(wrong).__name__}")
                left.extend((inner, level + 1) for inner in value.values())
            else:
                left.extend((inner, level + 1) for inner in value)
        elif not (value is None or isinstance(value, (bool, int, float, str, *allowed))):
            raise ValueError(f"it holds {type(value).__name__}, which is no plain data")


def env_number(name: str, default: int | None = None) -> int:
    """A whole number of at least 0 from an environment variable.

    Raises:
        ValueError: it is something else, or is not set (or empty) and there is no default.
    """
    text = os.environ.get(name, "").strip()
    if not text and default is not None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name} in the environment must be a whole number, it is {sanitized(text)!r}")
    return int(text)
