"""A work folder belongs to one run at a time."""

import logging
import os
from pathlib import Path

from filelock import FileLock, Timeout
from mmengine.dist import is_main_process

from ...log import print_log

LOCK = ".lock"
PATIENCE = 15.0  # seconds for a run that is just ending, with its loader's workers
# By process and path: Runners of one process may follow one another in a folder.
_held: dict[tuple[int, Path], FileLock] = {}


def hold(work_dir: str | Path) -> FileLock | None:
    """Keep other runs out of a work folder until the process ends, or the lock that is returned is released.

    The lock is the operating system's: a run that is killed leaves none behind. The first process of a run holds it for
    all of them; for the others, and on a file system that has no locks, None is returned.

    Raises:
        ValueError: another run holds it, or it cannot be made.
    """
    if not is_main_process():
        return None
    try:
        Path(work_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "it is a file" if Path(work_dir).is_file() else error.strerror
        raise ValueError(f"the work folder {work_dir} cannot be made: {why}") from None
    path = Path(work_dir).resolve() / LOCK
    if path.is_symlink():  # filelock before version 4 would empty the file that it leads to
        raise ValueError(f"{path} is a link, not the lock of a work folder: remove it")
    lock = _held.setdefault((os.getpid(), path), FileLock(path))  # a forked process has locks of its own
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise ValueError(
            f"the work folder {work_dir} is in use by another run, which is still going on: wait for its end, or name "
            "another one with --work-dir"
        ) from None
    except (OSError, NotImplementedError) as error:
        print_log(f"{work_dir} cannot be locked ({error}): let no other run write to it", "current", logging.WARNING)
        return None
    return lock
