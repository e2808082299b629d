"""Clean up a used work directory: delete partial files and move another run's files."""

import re
from itertools import count
from pathlib import Path

from mmengine.runner import Runner

from ...checkpoints import training_checkpoints, training_progress
from ...io.files import is_partial_file
from .results import RESULT_FILE

BEST_FILE = r"best_[\w.-]+_epoch_\d+\.pth"
# Files that a run writes to its work directory, each first under a temporary name.
OWN_FILES = rf"epoch_\d+(_iter_\d+)?\.pth|{BEST_FILE}|last_checkpoint|result\.json"


def set_aside(runner: Runner) -> None:
    """Delete partial files of interrupted writes, and move another run's files to ``before_<time>``.

    Checkpoints later than this run's start point belong to another run. Left in place, they would be the newest in the
    directory, and the next ``--resume`` would load them. The other run's result is moved too, and, unless this run
    resumes, its config.
    """
    work_dir = Path(runner.work_dir)
    for file in work_dir.iterdir():
        if is_partial_file(file.name, OWN_FILES) and file.is_file():
            file.unlink()
    checkpoints = training_checkpoints(work_dir)
    if runner.is_resuming:
        later = [path for path in checkpoints if training_progress(path)[0] > runner.epoch]
        later += [path for path in checkpoints if training_progress(path)[1] > runner.iter]
        later += [work_dir / RESULT_FILE] if later else []
    else:
        later = [*checkpoints, *work_dir.glob("best_*.pth"), work_dir / RESULT_FILE]
    later = [path for path in dict.fromkeys(later) if path.is_file()]
    source = Path(runner.cfg.filename or "config.py")
    config = work_dir / source.name
    if later and not runner.is_resuming and config.is_file() and config.resolve() != source.resolve():
        later.append(config)
    if not later:
        return
    names = (f"before_{runner.timestamp}" + (f"_{n}" if n > 1 else "") for n in count(1))
    folder = next(path for path in map(work_dir.joinpath, names) if not path.exists())
    try:
        folder.mkdir()
        for path in later:
            path.rename(folder / path.name)
    except OSError as error:
        runner.logger.warning(f"could not move the files of another run in {work_dir}: {error}")
        return
    runner.logger.warning(f"moved the checkpoints and results of another run in {work_dir} to {folder.name}")


def relocate_paths(info: dict, work_dir: str | Path) -> None:
    """Rewrite the paths that a checkpoint stores to this work directory: the checkpoint may have been copied here.

    A ``best_*`` entry that does not name a best checkpoint is dropped: the named file would later be deleted.
    """
    for key in [key for key in info if key == "last_ckpt" or key.startswith("best_")]:
        if key.startswith("best_score"):
            if info[key] is None:
                del info[key]
            continue
        name = Path(info[key]).name if info[key] is not None else ""
        if (key == "last_ckpt" and name) or re.fullmatch(BEST_FILE, name):
            info[key] = str(Path(work_dir) / name)
        else:
            del info[key]
