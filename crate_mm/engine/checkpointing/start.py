"""Where a run begins, and whether it can go on from a checkpoint: all is compared at the start, not at the step that
would fail."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer

from ...checkpoints import (
    Checkpoint,
    CheckpointError,
    check_state_dict,
    newest_checkpoint,
    open_checkpoint,
    same_dtype_kind,
)
from ...datasets.base import ResumableSampler
from ...io.untrusted import env_number, sanitized
from ..optim.sharded import ShardedOptimizer, optimizer_name


class StartPoint(NamedTuple):
    """The checkpoint that a run begins with, or None.

    Attributes:
        path: of the file.
        resume: whether the run resumes from it.
        opened: the checkpoint, if it was opened on the way.
        damaged: a message for each newer checkpoint that is damaged.
    """

    path: str | None
    resume: bool
    opened: Checkpoint | None
    damaged: list[str]


def find_start_point(cfg: Config, work_dir: str, known: Checkpoint | None = None) -> StartPoint:
    """Find the checkpoint to begin with. All processes call it; the first one looks, and tells the others.

    With ``resume`` and no ``load_from``, or with ``resume='newest'``, it is the newest of the work folder that is
    intact, damaged ones being put aside; so too if torchrun has started the processes anew.

    Args:
        cfg: of the run.
        work_dir: its folder.
        known: a checkpoint that this process has opened already, and need not open again.

    Raises:
        CheckpointError: all checkpoints of the work folder are damaged.
    """
    load_from, resume = cfg.get("load_from"), cfg.get("resume", False)
    restarted = env_number("TORCHELASTIC_RESTART_COUNT", 0)
    searches = resume == "newest" or (resume and not load_from) or restarted
    answer: list[Any] = [None, []]
    opened = {known.path: known} if known else {}

    def open_once(path: Path) -> None:
        if str(path) not in opened:
            opened[str(path)] = open_checkpoint(path)

    if searches and is_main_process():
        newest = newest_checkpoint(work_dir, answer[1].append, rename_damaged=True, check=open_once)
        answer[0] = str(newest) if newest else None
    broadcast_object_list(answer)  # by all, also where one process was started otherwise, which is said later
    newest, damaged = answer
    path = newest or load_from
    return StartPoint(path, bool(newest) or (resume is True and path is not None), opened.get(path), damaged)


def check_resumable(runner: Runner, checkpoint: Checkpoint) -> None:
    """Raise ``CheckpointError`` unless a checkpoint is of a run like this one, with states of the form that it has."""
    filename, meta, states = checkpoint.path, checkpoint.meta, checkpoint.states
    needed = ["optimizer", "message_hub"] + (["param_schedulers"] if runner.param_schedulers else [])
    missing = ([] if meta else ["meta"]) + [key for key in needed if key not in states]
    if missing == ["param_schedulers"]:
        raise CheckpointError(
            f"{filename} is of a run without a schedule (param_scheduler), this one has one: resume as it was"
        )
    if missing:
        raise CheckpointError(
            f"{filename} cannot be resumed from, it holds no {', '.join(missing)}: "
            "resume from an epoch_N.pth, not from a best or a converted one"
        )
    # With averaged weights MMEngine loads these, without looking at them.
    check_state_dict(runner.task.state_dict(), checkpoint.weights, filename, meta)
    if meta.get("epoch") is None or meta.get("iter") is None:
        raise CheckpointError(f"{filename} cannot be resumed from, its meta does not say of which epoch it is")
    _check_position(runner, filename, meta)
    if meta.get("seed") is not None and runner.configured_seed not in (None, meta["seed"]):
        raise CheckpointError(
            f"{filename} is of a run with randomness.seed={meta['seed']}, this one has {runner.configured_seed}: "
            "resume with the same seed"
        )
    averaged, averages = "ema_state_dict" in states, any(isinstance(h, EMAHook) for h in runner.hooks)
    if averaged != averages:
        raise CheckpointError(
            f"{filename} is of a run {'with' if averaged else 'without'} averaged weights (ema_momentum), "
            f"this one is {'with' if averages else 'without'}: resume as it was"
        )
    optimizer = optimizer_name(runner.optim_wrapper.optimizer)
    if meta.get("optimizer", optimizer) != optimizer:
        raise CheckpointError(f"{filename} is of a run with {meta['optimizer']}, this one has {optimizer}")
    _check_groups(runner.optim_wrapper.optimizer, states["optimizer"], filename)
    if isinstance(runner.param_schedulers, list):
        _check_schedules(runner.param_schedulers, states["param_schedulers"], filename)
    _check_numbers(states["optimizer"], filename)


def _check_position(runner: Runner, filename: str, meta: dict) -> None:
    """Raise ``CheckpointError`` unless the checkpoint's epoch and iteration are those of a run like this one."""
    steps, within = len(runner.train_dataloader), meta["iter"] - meta["epoch"] * len(runner.train_dataloader)
    other = meta.get("steps_per_epoch") or meta["iter"] / max(meta["epoch"], 1)
    if other != steps or not 0 <= within <= steps:
        raise CheckpointError(
            f"{filename} took {other:g} steps an epoch, this run takes {steps}: "
            "resume with the same global_batch_size and data"
        )
    if within and not isinstance(runner.train_dataloader.sampler, ResumableSampler):
        raise CheckpointError(
            f"{filename} is from within an epoch, where {type(runner.train_dataloader.sampler).__name__} cannot go "
            "on: resume from an epoch_N.pth"
        )


def _check_groups(optimizer: Optimizer, state: Any, filename: str) -> None:
    """Raise ``CheckpointError`` if an optimizer's state goes to other parameters, by its groups' names."""
    saved = state.get("param_groups") if isinstance(state, dict) else None
    if not isinstance(saved, list) or not all(isinstance(group, dict) for group in saved):
        return  # it is refused where it is loaded
    if [group.get("names") for group in saved] != [group.get("names") for group in optimizer.param_groups]:
        raise CheckpointError(
            f"{filename} is of a run whose parameters were grouped otherwise (optim_wrapper.paramwise_cfg): resume as "
            "it was"
        )


def _check_schedules(schedules: list, states: Any, filename: str) -> None:
    """Raise ``CheckpointError`` unless there is a state for each schedule, with its entries, of their kinds."""
    wrong = f"{filename} is no checkpoint of training: "
    if not isinstance(states, list) or len(states) != len(schedules):
        raise CheckpointError(f"{wrong}its param_schedulers are not the states of {len(schedules)} schedules")
    for state, schedule in zip(states, schedules):
        fresh = schedule.state_dict()
        if not isinstance(state, dict) or state.keys() != fresh.keys():
            raise CheckpointError(f"{wrong}the state of {type(schedule).__name__} has not the entries of one")
        for key, value in state.items():
            if not _matches_type(value, fresh[key]):
                what = sanitized(repr(value), 60)
                raise CheckpointError(f"{wrong}{sanitized(key)} in the state of {type(schedule).__name__} is {what}")


def _matches_type(value: Any, fresh: Any) -> bool:
    if fresh is None:
        return True
    if isinstance(fresh, (bool, str)):
        return value == fresh
    if isinstance(fresh, int):  # a step, or another number that a schedule may also have as a real one
        return isinstance(value, (int, float)) and math.isfinite(value) and float(value).is_integer()
    if isinstance(fresh, float):
        return isinstance(value, (int, float)) and math.isfinite(value)
    if isinstance(fresh, (list, tuple)):
        same = isinstance(value, (list, tuple)) and len(value) == len(fresh)
        return same and all(map(_matches_type, value, fresh))
    return isinstance(value, type(fresh))


def _check_numbers(state: Any, filename: str) -> None:
    """Raise ``CheckpointError`` for complex numbers, of which PyTorch would drop the imaginary parts."""
    left = [state]
    while left:
        value = left.pop()
        if isinstance(value, Tensor) and value.is_complex():
            raise CheckpointError(f"{filename} is no checkpoint of training: its optimizer's state has complex numbers")
        left += value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()


def check_optimizer_state(optimizer: Optimizer, configured: list[dict], filename: str) -> None:
    """Raise ``CheckpointError`` unless a loaded state is one of such an optimizer: PyTorch takes any, and fails later.

    What a state has is seen by a step that another optimizer of the kind takes on parameters of the same dimensions.

    Args:
        optimizer: with the state loaded.
        configured: its groups before that.
        filename: for the message.
    """
    wrong = f"{filename} is no checkpoint of training: "
    inner = optimizer.optim if isinstance(optimizer, ShardedOptimizer) else optimizer
    for group, before in zip(optimizer.param_groups, configured):
        for key in before.keys() - {"params"}:
            if key in group and not _same_kind_of_setting(group[key], before[key]):
                raise CheckpointError(f"{wrong}{sanitized(key)} of its optimizer is {sanitized(repr(group[key]), 60)}")
        expected: dict[int, dict | None] = {}
        for parameter in group["params"]:
            state = inner.state.get(parameter, {})
            if not isinstance(state, dict):
                raise CheckpointError(f"{wrong}the optimizer's state of a parameter is {type(state).__name__}, no dict")
            if parameter.ndim not in expected:
                expected[parameter.ndim] = _reference_state(type(inner), group, parameter)
            fresh = expected[parameter.ndim]
            if not fresh or parameter not in inner.state:
                continue  # it never had a gradient, or fp16's scaler has skipped all steps so far
            if state.keys() != fresh.keys():
                raise CheckpointError(
                    f"{wrong}the optimizer's state has {', '.join(map(sanitized, state)) or 'nothing'} for a parameter, "
                    f"{type(inner).__name__} has {', '.join(fresh)}"
                )
            for name, value in state.items():
                if not _matches_reference(value, fresh[name], parameter):
                    what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                    raise CheckpointError(
                        f"{wrong}{sanitized(name)} in the optimizer's state is {what}, for a parameter of "
                        f"{tuple(parameter.shape)}"
                    )


def _same_kind_of_setting(value: Any, before: Any) -> bool:
    if isinstance(before, (list, tuple)):
        same = isinstance(value, (list, tuple)) and len(value) == len(before)
        return same and all(map(_same_kind_of_setting, value, before))
    if isinstance(before, (int, float)) and not isinstance(before, bool):
        return isinstance(value, (int, float, Tensor)) and not isinstance(value, bool)
    return before is None or isinstance(value, (type(before), type(None)))


def _reference_state(kind: type[Optimizer], group: dict, parameter: Tensor) -> dict | None:
    """What an optimizer with a group's settings knows of a parameter after a step, or None if that cannot be seen."""
    dummy = torch.nn.Parameter(torch.ones([2 + i for i in range(parameter.ndim)]))
    dummy.grad = torch.ones_like(dummy)
    try:
        other = kind([{**{k: v for k, v in group.items() if k not in ("params", "initial_lr")}, "params": [dummy]}])
        other.step()
    except Exception:  # one of a user's own may need more than its group says
        return None
    return {name: (value, dummy) for name, value in other.state[dummy].items()}


def _matches_reference(value: Any, fresh: tuple[Any, Tensor], parameter: Tensor) -> bool:
    """Whether a state's entry is to the parameter what the dummy's is to the dummy."""
    other, dummy = fresh
    if value is None or other is None:
        return value is None or not isinstance(value, (str, dict, list))
    if not isinstance(other, Tensor):
        return isinstance(value, (int, float)) if isinstance(other, (int, float)) else isinstance(value, type(other))
    if other.ndim == 0:  # a count of steps, a number in older files
        return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
    if not isinstance(value, Tensor) or not same_dtype_kind(value, other):
        return False
    return value.shape == parameter.shape if other.shape == dummy.shape else value.ndim == other.ndim
