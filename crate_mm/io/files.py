"""Files that are there whole or not at all, and locks of processes that share a folder."""

import errno
import logging
import math
import os
import re
import secrets
import stat
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

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
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
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


_held: "weakref.WeakSet[FileLock]" = weakref.WeakSet()


class FileLock:
    """The operating system's lock (flock) on a file. It ends with the process that holds it, however that ends.

    There is no lock by the mere existence of a file: a process that is killed would block the others for ever. Where
    the file system has no locks (some of Lustre, FUSE and NFS), a log says so once a folder, and the process goes on
    as if it had the lock. A forked process holds none of its parent's locks.

    Args:
        path: of the file, which is made if need be, and stays. Its folder must exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._times, self._descriptor = 0, None

    def acquire(self, patience: float = 0.0) -> bool:
        """Take the lock; one that this object has is taken once more.

        Args:
            patience: seconds to wait for another process, or thread, that has it.

        Returns:
            Whether it is ours now, or there are no locks; False where another has it.

        Raises:
            ValueError: the file is a link, which would lead to a file that somebody else has chosen.
            FileNotFoundError: the folder is missing.
        """
        until = time.monotonic() + patience
        while self._descriptor is None and not self._lock():
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)
        self._times += 1
        return True

    def _lock(self) -> bool:
        descriptor = None
        try:
            if fcntl is None:
                raise OSError("this system has no flock")
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self.path, flags, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if descriptor is not None:
                os.close(descriptor)
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    return False
            if error.errno == errno.ELOOP:
                raise ValueError(f"{self.path} is a link, where the file of a lock was expected: remove it") from None
            if isinstance(error, FileNotFoundError):
                raise
            # Imported here: MMEngine needs a home folder to be imported, which the commands may have to set first.
            from mmengine.logging import MMLogger

            logger = MMLogger.get_current_instance().instance_name
            _say_unlocked(self.path.parent, error.strerror or str(error), logger)
            return True
        self._descriptor = descriptor
        _held.add(self)
        return True

    def release(self) -> None:
        """Give the lock back, once for each time that it was taken; more often does nothing."""
        self._times = max(self._times - 1, 0)
        if not self._times:
            if self._descriptor is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # a process that is just being started may have it too
            self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._times, self._descriptor = 0, None
        _held.discard(self)

    def __enter__(self) -> "FileLock":
        self.acquire(math.inf)
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _close_inherited() -> None:
    """In a forked process, which would keep its parent's locks when that is killed."""
    for lock in list(_held):
        lock._close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


@cache
def _say_unlocked(folder: Path, reason: str, logger: str) -> None:
    from mmengine.logging import print_log

    print_log(f"{folder} cannot be locked ({reason}): let no other process write to it", logger, logging.WARNING)


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
