"""Read the curves of runs from their logs, and compute the schedule of a config with its own schedulers."""

import math
import tempfile
import warnings
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from ..config import resolve_config
from ..engine.logs import LOG, read_launch, read_log
from ..engine.runner import Runner
from ..io.untrusted import is_count, sanitized
from ..models.layers import to_pair
from ..registry import DATASETS, suggest

NON_VALUES = ("epoch", "iter", "step", "launch")  # keys of a log line that are not logged values


class Point(NamedTuple):
    """A logged value, and the iterations and epochs completed when it was logged, each None if unknown."""

    iteration: int | None
    epoch: float | None
    value: float


class LogSegment(NamedTuple):
    """The log of one launch of a run.

    Attributes:
        number: number of the launch in the work directory.
        parent: number of the launch whose checkpoint it resumes from, or None.
        run: identifier of the run.
        epoch: epoch where the launch begins.
        iteration: iteration where the launch begins.
        steps: steps per epoch, or None if unknown.
        lines: the logged lines.
    """

    number: int
    parent: int | None
    run: str | None
    epoch: int
    iteration: int
    steps: int | None
    lines: list[dict[str, Any]]


def read_run(folder: str | Path) -> dict[str, list[Point]]:
    """Return the logged values of a run by sanitized name, in order of iterations or epochs.

    A resumed run has one log per launch. The curve consists of the last launch and of the launches that it resumes
    from. Values logged after the point of resume are discarded, because the next launch repeated these steps. Launches
    are ordered by number.

    Args:
        folder: the work directory, or one of its log folders.

    Raises:
        ValueError: there is no log.
        OSError: a log is not a regular file, or is too large.
    """
    files = sorted(Path(folder).glob(f"*/{LOG}")) or [file for file in [Path(folder) / LOG] if file.is_file()]
    launches = sorted((launch for file in files for launch in _read_launches(file)), key=lambda launch: launch.number)
    logged = [launch for launch in launches if launch.lines]
    if not logged:
        raise ValueError(f"{sanitized(folder)} has no log of a run: expected <time>/{LOG} in it")
    curves: dict[str, dict[tuple, Point]] = {}
    limit = {"iter": math.inf, "step": math.inf}  # where the later launches begin
    for launch in _lineage(logged[-1], launches):
        for line in reversed(launch.lines):
            for name, value in line.items():
                if name not in NON_VALUES and _is_number(value):
                    position, point = _point(line, value, launch.steps)
                    if position[1] <= limit[position[0]]:
                        curves.setdefault(sanitized(name), {}).setdefault(position, point)
        limit = {"iter": min(limit["iter"], launch.iteration), "step": min(limit["step"], launch.epoch)}
    return {name: [points[position] for position in sorted(points)] for name, points in curves.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _point(line: dict[str, Any], value: float, steps: int | None) -> tuple[tuple[str, int], Point]:
    """Return the position and the point of a value: training lines have an iteration, validation lines an epoch."""
    if "iter" in line:
        return ("iter", line["iter"]), Point(line["iter"], line["iter"] / steps if steps else None, value)
    epoch = line["step"]
    return ("step", epoch), Point(epoch * steps if steps else None, float(epoch), value)


def _lineage(last: LogSegment, launches: list[LogSegment]) -> list[LogSegment]:
    """Return a launch and its ancestors, the latest first; ``launches`` are sorted.

    If a parent's log is missing, the previous launch of the same run replaces it.
    """
    lineage = [last]
    for launch in reversed(launches):
        child = lineage[-1]
        if not child.parent:  # 0 if the checkpoint does not name its launch
            break
        if launch.number <= child.parent and launch.run == child.run:
            lineage.append(launch)
    return lineage


def _read_launches(file: Path) -> list[LogSegment]:
    """Return the launches of a log. Launches that started in the same second share a log."""
    launches = []
    for line in read_log(file):
        launch = read_launch(line)
        if launch:
            values = [launch.get(key) for key in ("number", "parent", "run", "epoch", "iter")]
            launches.append(LogSegment(*values, launch.get("steps_per_epoch") or None, []))
        elif is_count(line.get("iter", line.get("step"))):
            if not launches:
                launches.append(LogSegment(0, None, None, 0, 0, None, []))
            launches[-1].lines.append(line)
    return launches


def find_key(key: str, names: Iterable[str]) -> str:
    """Return the logged name that equals a key, or ends with a slash and the key: 'eval/top1' for 'top1'.

    Raises:
        ValueError: no name or several names match.
    """
    names = sorted(names)
    if key in names:
        return key
    matches = [name for name in names if name.rpartition("/")[2] == key]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(f"{key!r} may be {' or '.join(matches)}: give the full name")
    raise ValueError(f"no value is logged as {sanitized(key)!r}: {suggest(key, names)}")


# The schedule --------------------------------------------------------------------------------------------------------


class Schedule(NamedTuple):
    """The optimizer's settings at each iteration of a run.

    Attributes:
        steps: steps per epoch.
        values: one value per iteration, keyed by setting, such as 'lr', or by setting and parameter groups, such as
            'lr, 12 of 24 groups, at most 0.001'.
    """

    steps: int
    values: dict[str, array]


def schedule(cfg: Config, samples: int | None = None) -> Schedule:
    """Build a config's training objects and step its schedulers through the run, without training.

    Args:
        cfg: a user's config.
        samples: number of training images, if the data is not on this machine.

    Raises:
        ValueError: the data does not exist, the config does not build, or a scheduler depends on validation metrics.
    """
    cfg = cfg.copy()
    cfg.update(load_from=None, resume=False, launcher="none", log_level="ERROR", compile_blocks=False)
    cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    cfg.update(test_dataloader=None, test_cfg=None, test_evaluator=None)
    cfg.visualizer = None
    cfg.max_batch_per_device = cfg.get("max_batch_per_device") or cfg.get("global_batch_size")
    if samples is not None:
        classes = (cfg.model.get("head") or {}).get("num_classes") or 10
        channels = len((cfg.model.get("preprocessor") or {}).get("mean", "RGB"))
        shape = (channels, *to_pair((cfg.model.get("backbone") or {}).get("img_size", 224)))
        source = {"type": "FakeData", "size": samples, "num_classes": classes, "image_size": shape}
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
        raise ValueError(f"{error}; without the data, give the number of training images with --samples N") from None


def _run_through(runner: Runner) -> Schedule:
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, dict):
        raise ValueError("schedules of configs with several optimizers are not supported")
    if any(getattr(scheduler, "need_val_args", False) for scheduler in schedulers):
        raise ValueError("a scheduler depends on validation metrics: its schedule is not known before the run")
    optimizer, steps = runner.optim_wrapper.optimizer, len(runner.train_dataloader)
    names = list(dict.fromkeys(["lr", *(scheduler.param_name for scheduler in schedulers)]))
    names = [
        name for name in names if all(isinstance(group.get(name), float | int) for group in optimizer.param_groups)
    ]
    columns = {name: [array("d") for _ in optimizer.param_groups] for name in names}
    warnings.filterwarnings("ignore", "Detected call of `scheduler.step")  # no optimizer steps are taken here
    for iteration in range(1, runner.max_iters + 1):
        for name, column in columns.items():
            for values, group in zip(column, optimizer.param_groups):
                values.append(group[name])
        for scheduler in schedulers:  # as MMEngine's ParamSchedulerHook does
            if not scheduler.by_epoch or iteration % steps == 0:
                scheduler.step()
    return Schedule(steps, {label: values for name in names for label, values in _distinct(name, columns[name])})


def _distinct(name: str, columns: list[array]) -> list[tuple[str, array]]:
    """Return the distinct curves by label. If there are several, each label counts its parameter groups."""
    equal: dict[bytes, list[array]] = {}
    for values in columns:
        equal.setdefault(values.tobytes(), []).append(values)
    if len(equal) == 1:
        return [(name, columns[0])]
    labels = [f"{name}, {len(same)} of {len(columns)} groups, at most {max(same[0]):g}" for same in equal.values()]
    labels = [f"{text} ({n})" if text in labels[: n - 1] else text for n, text in enumerate(labels, 1)]
    return [(label, same[0]) for label, same in zip(labels, equal.values())]
