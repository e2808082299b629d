"""A work folder that has been used: which files are whose, and what goes aside."""

import re
from itertools import count
from pathlib import Path

from mmengine.runner import Runner

from ...checkpoints import training_checkpoints, training_progress
from ...io.files import is_partial_file
from .results import RESULT_FILE

BEST_FILE = r"best_[\w.-]+_epoch_\d+\.pth"
# What a run writes into its work folder, beside its place first.
OWN_FILES = rf"epoch_\d+(_iter_\d+)?\.pth|{BEST_FILE}|last_checkpoint|result\.json"


def set_aside(runner: Runner) -> None:
    """Take what a broken-off write left out of a work folder, and put another run's files aside.

    Files of another run are those that it would have written after where this one begins: they would be the newest in
    the folder, and what a resume goes on from. With them go its result and, as this run begins anew, its config.
    """
    work_dir = Path(runner.work_dir)
    for leftover in work_dir.iterdir():
        if is_partial_file(leftover.name, OWN_FILES) and leftover.is_file():
            leftover.unlink()
    own = training_checkpoints(work_dir)
    if runner.is_resuming:
        later = [path for path in own if training_progress(path)[0] > runner.epoch]
        later += [path for path in own if training_progress(path)[1] > runner.iter]
        later += [work_dir / RESULT_FILE] if later else []
    else:
        later = [*own, *work_dir.glob("best_*.pth"), work_dir / RESULT_FILE]
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
        runner.logger.warning(f"cannot tidy up {work_dir}: {error}")
        return
    runner.logger.warning(f"the checkpoints and results of another run in {work_dir} are in {folder.name} now")


def relocate_paths(info: dict, work_dir: str | Path) -> None:
    """Let what a checkpoint knows of files be about this work folder: it may have been copied from another one.

    A best checkpoint is deleted when there is a better one: no file of another name may stand in its place.
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
