"""Lock a work directory for one run at a time."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmengine.dist import is_main_process

from ...io.files import FileLock

LOCK = ".lock"
LOG_FOLDER = re.compile(r"\d{8}_\d{6}")  # MMEngine's name: the time
PATIENCE = 15.0  # seconds to wait for an ending run and its data-loader workers
_held: dict[Path, FileLock] = {}  # several Runners of one process may use a directory one after another


class FolderInUseError(ValueError):
    """Another run holds the lock of a work directory."""


def lock_work_dir(work_dir: str | Path) -> FileLock | None:
    """Lock a work directory against other runs until the process ends or the returned lock is released.

    A killed run leaves no lock behind. Rank 0 holds the lock for all ranks; the others get None. On a file system
    without locks the run continues, and a warning is logged.

    Raises:
        FolderInUseError: another run holds the lock.
        ValueError: the directory cannot be created.
    """
    if not is_main_process():
        return None
    try:
        Path(work_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if Path(work_dir).is_file() else error.strerror
        raise ValueError(f"could not create the work directory {work_dir}: {reason}") from None
    path = Path(work_dir).resolve() / LOCK
    lock = _held.setdefault(path, FileLock(path))
    if not lock.acquire(PATIENCE):
        raise FolderInUseError(
            f"the work directory {work_dir} is in use by another run: wait until that run ends, or choose another "
            "directory with --work-dir"
        )
    return lock


@contextmanager
def locked_work_dir(work_dir: str | Path) -> Iterator[None]:
    """Lock a work directory as ``lock_work_dir`` does, and keep the lock after the body.

    If the body raises an exception, the lock is released, and log folders and directories that are new are deleted: a
    refused run leaves nothing behind.
    """
    folder = Path(work_dir).resolve()
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    had_lock = (folder / LOCK).exists()
    lock = lock_work_dir(work_dir)
    before = set(folder.iterdir()) if lock else set()
    try:
        yield
    except BaseException:
        if lock:
            with suppress(OSError):  # such as a file system that does not delete an open log
                for path in set(folder.iterdir()) - before:  # a damaged checkpoint may have got a new name: keep it
                    if LOG_FOLDER.fullmatch(path.name):
                        shutil.rmtree(path)
            lock.release() if had_lock else lock.delete()
            with suppress(OSError):
                for path in new_folders:
                    path.rmdir()
        raise
