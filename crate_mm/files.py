"""Files that are there whole or not at all."""

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

# Bytes of a folder for temporary files: multiprocessing adds 32 to it for a socket, whose path has 103 on some systems.
LONGEST_TEMP = 70


def home(path: str | os.PathLike) -> str:
    """A path in which a leading ``~`` is the home folder."""
    return os.path.expanduser(os.fspath(path))


def is_utf8(path: str | os.PathLike) -> bool:
    """Whether a path is text in UTF-8; on Linux a name may be any bytes."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def utf8_path(path: str | os.PathLike) -> Iterator[str]:
    """A file's path for a library that takes none but in UTF-8: its own or, where that is none, its descriptor's."""
    if is_utf8(path):
        yield os.fspath(path)
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield f"/dev/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: str | Path, text: bool = False) -> Iterator[IO]:
    """Write a file beside its place, sync it to disk, and rename it when the ``with`` ends without an exception.

    Else what was there before stays, and nothing is left beside it. The name beside is one that nobody can foresee,
    so that no link waits there. A link at ``path`` is replaced, not followed. A device or a pipe, such as /dev/stdout,
    is written to as it is.

    Args:
        path: of the file; its folder must exist.
        text: whether strings are written, as UTF-8 with line ends as they are, rather than bytes.
    """
    how = {"mode": "w", "encoding": "utf-8", "errors": "backslashreplace", "newline": ""} if text else {"mode": "wb"}
    path = Path(path)
    if _is_special(path):
        with open(path, **how) as file:
            yield file
        return
    start = os.fsdecode(os.fsencode(path.name)[:180])  # a name has 255 bytes at most
    part = path.with_name(f".{start}.{secrets.token_hex(4)}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with open(descriptor, **how) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()  # on a full disk it is in the way
        raise
    _sync_folder(path.parent)


def write_whole(path: str | Path, contents: bytes) -> None:
    """Write a file as ``atomic_file`` does, into a folder that is made if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(contents)


def is_leftover(name: str, of: str) -> bool:
    """Whether a file's name is one that ``atomic_file`` chose, for files whose names match the pattern ``of``."""
    return re.fullmatch(rf"\.(?:{of})\.[0-9a-f]{{8}}\.part", name) is not None


def _is_special(path: Path) -> bool:
    if os.path.abspath(path).startswith(("/dev/std", "/dev/fd/", "/proc/")):
        return True
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _sync_folder(folder: Path) -> None:
    """Let the renaming reach the disk, where the system can do that for folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse
    finally:
        os.close(descriptor)
