"""Atomic file writes, and locks between processes that share a folder."""

import errno
import json
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
from typing import IO, Any

from .untrusted import sanitized

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

# Maximum bytes of the temporary directory's path: multiprocessing adds 32, and a socket's path may have 103 in all.
MAX_TEMP_BYTES = 70


def home(path: str | os.PathLike) -> str:
    """Return a path with a leading ``~`` expanded to the home directory."""
    return os.path.expanduser(os.fspath(path))


def check_writable(*files: str | None) -> None:
    """Raise ``ValueError`` for a file that cannot be written."""
    for file in filter(None, files):
        path = Path(file)
        if path.is_dir():
            raise ValueError(f"cannot write {file}: it is a folder")
        if not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
            why = "it is read-only" if path.resolve().parent.is_dir() else "its folder does not exist"
            raise ValueError(f"cannot write {sanitized(file)}: {why}")


def is_utf8(path: str | os.PathLike) -> bool:
    """Return whether a path is valid UTF-8; on Linux a name may be any bytes."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def utf8_path(path: str | os.PathLike) -> Iterator[str]:
    """Yield a UTF-8 path of a file: its own path if it is UTF-8, else the path of an open descriptor."""
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
    """Write a temporary file, sync it, and rename it to ``path`` when the ``with`` block ends without an exception.

    After an exception, the temporary file is deleted and an existing file is unchanged. The temporary name is random,
    so that nobody can place a link there. A link at ``path`` is replaced, not followed. A device or a pipe, such as
    /dev/stdout, is written to directly.

    Args:
        path: path of the file; its folder must exist.
        text: open in text mode (UTF-8, line ends unchanged) instead of binary mode.
    """
    options = (
        {"mode": "w", "encoding": "utf-8", "errors": "backslashreplace", "newline": ""} if text else {"mode": "wb"}
    )
    path = Path(path)
    if _is_special(path):
        with open(path, **options) as file:
            yield file
        return
    start = os.fsdecode(os.fsencode(path.name)[:180])  # file names are limited to 255 bytes
    part = path.with_name(f".{start}.{secrets.token_hex(4)}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with open(descriptor, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()  # partial files would fill the disk
        raise
    _sync_folder(path.parent)


def write_whole(path: str | Path, contents: bytes) -> None:
    """Write a file atomically (see ``atomic_file``), creating its folder if necessary."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(contents)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON, atomically (see ``atomic_file``)."""
    with atomic_file(path, text=True) as file:
        file.write(json.dumps(value, indent=2) + "\n")


def is_partial_file(name: str, pattern: str) -> bool:
    """Return whether ``name`` is a temporary name of ``atomic_file`` for a file name that matches ``pattern``."""
    return re.fullmatch(rf"\.(?:{pattern})\.[0-9a-f]{{8}}\.part", name) is not None


_held: "weakref.WeakSet[FileLock]" = weakref.WeakSet()


class FileLock:
    """Lock of the operating system (flock) on a file. The system releases it when the process ends, even if killed.

    If the file system has no locks (some Lustre, FUSE and NFS mounts), a warning is logged once per folder, and the
    process continues as if it held the lock. A forked process holds none of its parent's locks.

    Args:
        path: path of the lock file, which is created if missing. Only ``delete`` deletes it. Its folder must exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._times, self._descriptor = 0, None

    def acquire(self, patience: float = 0.0) -> bool:
        """Acquire the lock. It is reentrant: release it as often as it was acquired.

        Args:
            patience: seconds to wait while another process or thread holds the lock.

        Returns:
            True if the lock is acquired or the file system has no locks; False if another process or thread holds it.

        Raises:
            ValueError: the lock file is a link, which could lead to any file.
            FileNotFoundError: the folder is missing.
        """
        deadline = time.monotonic() + patience
        while self._descriptor is None and not self._lock():
            if time.monotonic() >= deadline:
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
            if not _is_file(descriptor, self.path):  # the last holder deleted the file: lock a new file
                os.close(descriptor)
                return False
        except OSError as error:
            if descriptor is not None:
                os.close(descriptor)
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    return False
            if error.errno == errno.ELOOP:
                raise ValueError(f"{self.path} is a link, expected a lock file: remove it") from None
            if isinstance(error, FileNotFoundError):
                raise
            # Late import: importing MMEngine needs a home folder, which the commands may have to set first.
            from mmengine.logging import MMLogger

            logger = MMLogger.get_current_instance().instance_name
            _warn_unlocked(self.path.parent, error.strerror or str(error), logger)
            return True
        self._descriptor = descriptor
        _held.add(self)
        return True

    def release(self) -> None:
        """Release the lock once; it is free after as many releases as acquisitions. Extra releases do nothing."""
        self._times = max(self._times - 1, 0)
        if not self._times:
            if self._descriptor is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # a process being started may share the descriptor
            self._close()

    def delete(self) -> None:
        """Delete the lock file if this process holds the lock, and release the lock completely."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)  # before the release, so that a waiting process locks a new file
        self._times = min(self._times, 1)
        self.release()

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
    """Close inherited locks in a forked process, which would otherwise keep them after its parent is killed."""
    for lock in list(_held):
        lock._close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


def _is_file(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the file at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@cache
def _warn_unlocked(folder: Path, reason: str, logger: str) -> None:
    from mmengine.logging import print_log

    print_log(
        f"could not lock {folder} ({reason}): make sure that no other process writes to it", logger, logging.WARNING
    )


def _is_special(path: Path) -> bool:
    if os.path.abspath(path).startswith(("/dev/std", "/dev/fd/", "/proc/")):
        return True
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _sync_folder(folder: Path) -> None:
    """Sync a rename to disk, if the system supports it for folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # not supported by some network file systems
    finally:
        os.close(descriptor)
