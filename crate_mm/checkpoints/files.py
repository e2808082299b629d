"""Find a run's training checkpoints in its work directory by name."""

import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .readers.pth import verify_checkpoint
from .validate import CheckpointError, DamagedError


def training_progress(path: str | Path) -> tuple[int, int] | None:
    """Return the epoch and iteration in the name of a training checkpoint; None for any other name.

    ``epoch_3.pth`` gives (3, 0). ``epoch_3_iter_350.pth``, saved within an epoch, gives (3, 350). Later checkpoints
    compare greater.
    """
    match = re.fullmatch(r"epoch_(\d{1,15})(?:_iter_(\d{1,15}))?\.pth", Path(path).name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def training_checkpoints(work_dir: str | Path) -> list[Path]:
    """Return the training checkpoints in a work directory, oldest first."""
    paths = filter(training_progress, Path(work_dir).glob("epoch_*.pth"))
    return sorted((path for path in paths if path.is_file()), key=training_progress)


def newest_checkpoint(
    work_dir: str | Path,
    report: Callable[[str], None] = warnings.warn,
    rename_damaged: bool = False,
    check: Callable[[Path], object] | None = None,
) -> Path | None:
    """Return the newest intact checkpoint in a work directory, or None if it has no checkpoints.

    Args:
        work_dir: a run's directory.
        report: called with a message for each newer checkpoint that is damaged.
        rename_damaged: rename damaged checkpoints to ``*.damaged`` if an intact one is found. Later calls ignore them.
        check: raises ``DamagedError`` for a damaged checkpoint (default: ``verify_checkpoint``).

    Raises:
        CheckpointError: all checkpoints are damaged.
    """
    candidates, damaged = training_checkpoints(work_dir), []
    for path in reversed(candidates):
        try:
            (check or verify_checkpoint)(path)
        except DamagedError as error:
            report(f"{error}; trying the checkpoint before it")
            damaged.append(path)
        else:
            for damaged_path in damaged if rename_damaged else ():
                with suppress(OSError):
                    damaged_path.rename(f"{damaged_path}.damaged")
            return path
    if candidates:
        raise CheckpointError(
            f"every checkpoint in {work_dir} is damaged ({', '.join(p.name for p in candidates)}): move them away, "
            "or start from scratch without --resume"
        )
    return None
