"""A work folder belongs to one run at a time."""

from pathlib import Path

from mmengine.dist import is_main_process

from ...io.files import FileLock

LOCK = ".lock"
PATIENCE = 15.0  # seconds for a run that is just ending, with its loader's workers
_held: dict[Path, FileLock] = {}  # Runners of one process may follow one another in a folder


class FolderInUseError(ValueError):
    """Another run holds a work folder."""


def lock_work_dir(work_dir: str | Path) -> FileLock | None:
    """Keep other runs out of a work folder until the process ends, or the lock that is returned is released.

    A run that is killed leaves no lock behind. The first process of a run holds the lock for all its processes; None is
    returned to the others. On a file system without locks the run goes on, and the log says that there is none.

    Raises:
        FolderInUseError: another run holds it.
        ValueError: it cannot be made.
    """
    if not is_main_process():
        return None
    try:
        Path(work_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "it is a file" if Path(work_dir).is_file() else error.strerror
        raise ValueError(f"the work folder {work_dir} cannot be made: {why}") from None
    path = Path(work_dir).resolve() / LOCK
    lock = _held.setdefault(path, FileLock(path))
    if not lock.acquire(PATIENCE):
        raise FolderInUseError(
            f"the work folder {work_dir} is in use by another run, which is still going on: wait for its end, or name "
            "another one with --work-dir"
        )
    return lock
