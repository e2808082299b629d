"""The curves of runs, read from their logs, and the schedule of a config, as its schedulers give it."""

import math
import re
import tempfile
import warnings
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from ..config import resolve_config
from ..io.untrusted import is_count, read_regular, sanitized
from ..registry import DATASETS, suggest
from .logs import LOG, MAX_LOG_BYTES, read_launch, read_log
from .runner import Runner

PLACE = ("epoch", "iter", "step", "launch")  # what a line of the log has beside its values


class Point(NamedTuple):
    """A value that was logged: after so many iterations and epochs, each None where it is not known."""

    iteration: int | None
    epoch: float | None
    value: float


class LogSegment(NamedTuple):
    """One launch of a run: its number in the work folder, the launch whose checkpoint it goes on from (``parent``), the
    epoch and iteration after which it does, the steps of an epoch, and what it logged."""

    number: int
    parent: int | None
    run: str | None
    epoch: int
    iteration: int
    steps: int | None
    lines: list[dict[str, Any]]


def read_run(folder: str | Path) -> dict[str, list[Point]]:
    """What a run has logged, by name (as ``sanitized`` writes it), in the order of its iterations or epochs.

    A run that was resumed has a log for each launch. The curve is that of the last launch, and of those that it goes on
    from: what a launch logged after the point that the next one goes on from counts for nothing, as the next one took
    these steps again. Launches follow each other by their numbers. Logs of earlier versions of crate_mm have none:
    they come before all others, in the order of their folders' names.

    Args:
        folder: the work folder, or one of its folders of logs.

    Raises:
        ValueError: there is no log.
        OSError: a log is no regular file, or too large.
    """
    files = sorted(Path(folder).glob(f"*/{LOG}")) or [file for file in [Path(folder) / LOG] if file.is_file()]
    launches = _in_order([launch for file in files for launch in _read_launches(file)])
    logged = [launch for launch in launches if launch.lines]
    if not logged:
        raise ValueError(f"{sanitized(folder)} has no log of a run: expected <time>/{LOG} in it")
    found: dict[str, dict[tuple, Point]] = {}
    reached = {"iter": math.inf, "step": math.inf}  # what later launches go on from
    for launch in _lineage(logged[-1], launches):
        for line in reversed(launch.lines):
            for name, value in line.items():
                if name not in PLACE and _is_number(value):
                    place, point = _point(line, value, launch.steps)
                    if place[1] <= reached[place[0]]:
                        found.setdefault(sanitized(name), {}).setdefault(place, point)
        reached = {"iter": min(reached["iter"], launch.iteration), "step": min(reached["step"], launch.epoch)}
    return {name: [points[place] for place in sorted(points)] for name, points in found.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _point(line: dict[str, Any], value: float, steps: int | None) -> tuple[tuple[str, int], Point]:
    """Where a value of a line stands, and the point: a line of training has its iteration, of validation its epoch."""
    if "iter" in line:
        return ("iter", line["iter"]), Point(line["iter"], line["iter"] / steps if steps else None, value)
    epoch = line["step"]
    return ("step", epoch), Point(epoch * steps if steps else None, float(epoch), value)


def _in_order(launches: list[LogSegment]) -> list[LogSegment]:
    """Launches by their numbers; those without a number get one, up to 0, in the order in which they are."""
    unnumbered = [launch for launch in launches if launch.number == 0]
    first = 1 - len(unnumbered)
    unnumbered = [
        launch._replace(number=number, parent=number - 1 if launch.iteration else None)
        for number, launch in enumerate(unnumbered, first)
    ]
    return unnumbered + sorted((launch for launch in launches if launch.number), key=lambda launch: launch.number)


def _lineage(last: LogSegment, launches: list[LogSegment]) -> list[LogSegment]:
    """A launch and those that it goes on from, the latest first, of launches in their order.

    Where the log of a parent is lost, the one before it in the same run stands in its place.
    """
    found = [last]
    for launch in reversed(launches):
        child = found[-1]
        if child.parent is None:
            break
        if launch.number <= child.parent and launch.run == (child.run if child.parent > 0 else None):
            found.append(launch)
    return found


def _read_launches(file: Path) -> list[LogSegment]:
    """The launches of a log: several, where they were made in the same second by the computer's clock."""
    launches = []
    for line in read_log(file):
        launch = read_launch(line)
        if launch:
            place = [launch.get(key) for key in ("number", "parent", "run", "epoch", "iter")]
            launches.append(LogSegment(*place, launch.get("steps_per_epoch") or None, []))
        elif is_count(line.get("iter", line.get("step"))):
            if not launches:
                launches.append(_launch_of_text(file))
            launches[-1].lines.append(line)
    return launches


def _launch_of_text(file: Path) -> LogSegment:
    """A launch whose log of scalars does not say where it begins, as that of an earlier version: its text log does."""
    logs = sorted(file.parents[1].glob("*.log"))
    text = "".join(read_regular(log, MAX_LOG_BYTES).decode(errors="replace") for log in logs)
    resumed = re.search(r"resumed epoch: (\d{1,15}), iter: (\d{1,15})\b", text)
    steps = re.search(r"; (\d{1,15}) steps an epoch, ", text)
    epoch, iteration = map(int, resumed.groups()) if resumed else (0, 0)
    return LogSegment(0, None, None, epoch, iteration, (int(steps[1]) or None) if steps else None, [])


def find_key(asked: str, known: Iterable[str]) -> str:
    """The name of a logged value by itself, or without what stands before its slash: 'top1' for 'eval/top1'.

    Raises:
        ValueError: there is no such, or there are several.
    """
    known = sorted(known)
    if asked in known:
        return asked
    found = [name for name in known if name.rpartition("/")[2] == asked]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{asked!r} may be {' or '.join(found)}: write it in full")
    raise ValueError(f"nothing is logged as {sanitized(asked)!r}: {suggest(asked, known)}")


# The schedule --------------------------------------------------------------------------------------------------------


class Schedule(NamedTuple):
    """What the optimizer's settings are at each iteration of a run.

    Args:
        steps: of an epoch.
        values: by the setting's name, such as 'lr', and the groups of parameters that share it, such as 'lr, 12 of 24
            groups, at most 0.001': a number for each iteration.
    """

    steps: int
    values: dict[str, array]


def schedule(cfg: Config, samples: int | None = None) -> Schedule:
    """Build all that a config trains with, and let its schedulers go through the run, without training.

    Args:
        cfg: a user's config.
        samples: number of training images, for data that is not here.

    Raises:
        ValueError: the data is not here, something does not build, or a scheduler follows the validation.
    """
    cfg = cfg.copy()
    cfg.update(load_from=None, resume=False, launcher="none", log_level="ERROR", compile_blocks=False)
    cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    cfg.update(test_dataloader=None, test_cfg=None, test_evaluator=None)
    cfg.visualizer = None
    cfg.max_batch_per_device = cfg.get("max_batch_per_device") or cfg.get("global_batch_size")
    if samples is not None:
        classes = (cfg.model.get("head") or {}).get("num_classes", 10)
        source = {"type": "FakeData", "size": samples, "num_classes": classes}
        cfg.train_dataloader.dataset = {"type": "ClassificationDataset", "source": source}
    else:
        _check_data(cfg)
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        runner = Runner.for_training(cfg)
        with warnings.catch_warnings():
            return _run_through(runner)


def _check_data(cfg: Config) -> None:
    try:
        DATASETS.build(resolve_config(cfg, world_size=1).train_dataloader.dataset)
    except (ValueError, OSError, RuntimeError) as error:
        raise ValueError(f"{error}; without the data, --samples N says how many training images it has") from None


def _run_through(runner: Runner) -> Schedule:
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, dict):
        raise ValueError("the config has several optimizers, whose schedules are not drawn")
    if any(getattr(scheduler, "need_val_args", False) for scheduler in schedulers):
        raise ValueError("a scheduler of the config follows the validation: its schedule is not known before the run")
    optimizer, steps = runner.optim_wrapper.optimizer, len(runner.train_dataloader)
    names = list(dict.fromkeys(["lr", *(scheduler.param_name for scheduler in schedulers)]))
    names = [
        name for name in names if all(isinstance(group.get(name), float | int) for group in optimizer.param_groups)
    ]
    columns = {name: [array("d") for _ in optimizer.param_groups] for name in names}
    warnings.filterwarnings("ignore", "Detected call of `scheduler.step")  # the optimizer takes no steps here
    for iteration in range(1, runner.max_iters + 1):
        for name, column in columns.items():
            for values, group in zip(column, optimizer.param_groups):
                values.append(group[name])
        for scheduler in schedulers:  # as MMEngine's hook does
            if not scheduler.by_epoch or iteration % steps == 0:
                scheduler.step()
    return Schedule(steps, {label: values for name in names for label, values in _distinct(name, columns[name])})


def _distinct(name: str, columns: list[array]) -> list[tuple[str, array]]:
    """Each of the curves once, with the number of groups that share it where there are several."""
    counted: dict[bytes, list[array]] = {}
    for values in columns:
        counted.setdefault(values.tobytes(), []).append(values)
    if len(counted) == 1:
        return [(name, columns[0])]
    labels = [f"{name}, {len(same)} of {len(columns)} groups, at most {max(same[0]):g}" for same in counted.values()]
    labels = [f"{text} ({n})" if text in labels[: n - 1] else text for n, text in enumerate(labels, 1)]
    return [(label, same[0]) for label, same in zip(labels, counted.values())]
