"""The checkpoints of a run's work folder, by their names."""

import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .readers.pth import check_intact
from .validate import CheckpointError, DamagedError


def training_progress(path: str | Path) -> tuple[int, int] | None:
    """What the name of a training checkpoint says: whole epochs, and iterations in all if it is from within an epoch.

    ``epoch_3.pth`` is (3, 0), ``epoch_3_iter_350.pth`` (3, 350), any other name None; later ones compare as greater.
    """
    match = re.fullmatch(r"epoch_(\d{1,15})(?:_iter_(\d{1,15}))?\.pth", Path(path).name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def training_checkpoints(work_dir: str | Path) -> list[Path]:
    """The checkpoints of training in a work folder, the oldest first, found by listing it; files alone."""
    named = filter(training_progress, Path(work_dir).glob("epoch_*.pth"))
    return sorted((path for path in named if path.is_file()), key=training_progress)


def newest_checkpoint(
    work_dir: str | Path,
    report: Callable[[str], None] = warnings.warn,
    put_aside: bool = False,
    check: Callable[[Path], object] | None = None,
) -> Path | None:
    """The newest checkpoint of a work folder that is intact, or None if the folder has none.

    Args:
        work_dir: folder of a run.
        report: gets a sentence for each newer one that is damaged.
        put_aside: rename these to ``*.damaged``, so that they count for nothing any more, if one before is intact.
        check: raises ``DamagedError`` for a damaged one; ``check_intact`` if not given.

    Raises:
        CheckpointError: all that there are are damaged.
    """
    candidates, damaged = training_checkpoints(work_dir), []
    for path in reversed(candidates):
        try:
            (check or check_intact)(path)
        except DamagedError as error:
            report(f"{error}; taking the one before it")
            damaged.append(path)
        else:
            for other in damaged if put_aside else ():
                with suppress(OSError):
                    other.rename(f"{other}.damaged")
            return path
    if candidates:
        raise CheckpointError(
            f"every checkpoint in {work_dir} is damaged ({', '.join(p.name for p in candidates)}): move them away, "
            "or begin anew without --resume"
        )
    return None
