"""Find the checkpoint that a run starts from, and check before the first step that the run can resume from it."""

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
from ...io.untrusted import env_number, sanitized, walk
from ..optim.sharded import ShardedOptimizer, optimizer_name


class StartPoint(NamedTuple):
    """The checkpoint that a run starts from, if any.

    Attributes:
        path: the file, or None.
        resume: whether the run resumes from it.
        checkpoint: the open checkpoint, or None if it is not open yet.
        damaged: one message per damaged newer checkpoint.
    """

    path: str | None
    resume: bool
    checkpoint: Checkpoint | None
    damaged: list[str]


def find_start_point(cfg: Config, work_dir: str, checkpoint: Checkpoint | None = None) -> StartPoint:
    """Find the checkpoint to start from. All ranks call it; rank 0 searches and broadcasts the result.

    The newest intact checkpoint of the work directory is used with ``resume`` and no ``load_from``, with
    ``resume='newest'``, and after torchrun has restarted the processes. Damaged checkpoints are renamed.

    Args:
        cfg: the run's config.
        work_dir: the run's work directory.
        checkpoint: an open checkpoint, which is not opened again.

    Raises:
        CheckpointError: all checkpoints of the work directory are damaged.
    """
    load_from, resume = cfg.get("load_from"), cfg.get("resume", False)
    restarted = env_number("TORCHELASTIC_RESTART_COUNT", 0)
    searches = resume == "newest" or (resume and not load_from) or restarted
    result: list[Any] = [None, []]
    checkpoints = {checkpoint.path: checkpoint} if checkpoint else {}

    def open_once(path: Path) -> None:
        if str(path) not in checkpoints:
            checkpoints[str(path)] = open_checkpoint(path)

    if searches and is_main_process():
        newest = newest_checkpoint(work_dir, result[1].append, rename_damaged=True, check=open_once)
        result[0] = str(newest) if newest else None
    # Broadcast in any case: ranks with different options would wait for each other. check_same_run reports them later.
    broadcast_object_list(result)
    newest, damaged = result
    path = newest or load_from
    return StartPoint(path, bool(newest) or (resume is True and path is not None), checkpoints.get(path), damaged)


def check_resumable(runner: Runner, checkpoint: Checkpoint) -> None:
    """Raise ``CheckpointError`` unless the checkpoint's run matches this run and its states have the expected form."""
    filename, meta, states = checkpoint.path, checkpoint.meta, checkpoint.states
    needed = ["optimizer", "message_hub"] + (["param_schedulers"] if runner.param_schedulers else [])
    missing = ([] if meta else ["meta"]) + [key for key in needed if key not in states]
    if missing == ["param_schedulers"]:
        raise CheckpointError(
            f"{filename} is of a run without a schedule (param_scheduler), but this run has one: remove the schedule"
        )
    if missing:
        raise CheckpointError(
            f"{filename} cannot be resumed from, because it has no {', '.join(missing)}: "
            "resume from an epoch_N.pth, not from a best_*.pth or a converted checkpoint"
        )
    # With averaged weights (EMA), MMEngine loads these weights without checking them.
    check_state_dict(runner.task.state_dict(), checkpoint.weights, filename, meta)
    if meta.get("epoch") is None or meta.get("iter") is None:
        raise CheckpointError(f"{filename} cannot be resumed from, because its meta has no epoch or no iter")
    _check_position(runner, filename, meta)
    if meta.get("seed") is not None and runner.configured_seed not in (None, meta["seed"]):
        raise CheckpointError(
            f"{filename} is of a run with randomness.seed={meta['seed']}, but this run has {runner.configured_seed}: "
            "resume with the same seed"
        )
    stored_ema, own_ema = "ema_state_dict" in states, any(isinstance(h, EMAHook) for h in runner.hooks)
    if stored_ema != own_ema:
        raise CheckpointError(
            f"{filename} is of a run {'with' if stored_ema else 'without'} averaged weights (ema_momentum), "
            f"but this run is {'with' if own_ema else 'without'}: resume with the same setting"
        )
    optimizer = optimizer_name(runner.optim_wrapper.optimizer)
    if meta.get("optimizer", optimizer) != optimizer:
        raise CheckpointError(f"{filename} is of a run with {meta['optimizer']}, but this run has {optimizer}")
    _check_groups(runner.optim_wrapper.optimizer, states["optimizer"], filename)
    if isinstance(runner.param_schedulers, list):
        _check_schedules(runner.param_schedulers, states["param_schedulers"], filename)
    if any(isinstance(value, Tensor) and value.is_complex() for _, value in walk(states["optimizer"])):
        # PyTorch would drop the imaginary parts.
        raise CheckpointError(f"{filename} is not a training checkpoint: its optimizer state has complex numbers")


def _check_position(runner: Runner, filename: str, meta: dict) -> None:
    """Raise ``CheckpointError`` unless the checkpoint's epoch and iteration fit this run's steps per epoch."""
    steps, within = len(runner.train_dataloader), meta["iter"] - meta["epoch"] * len(runner.train_dataloader)
    stored_steps = meta.get("steps_per_epoch") or meta["iter"] / max(meta["epoch"], 1)
    if stored_steps != steps or not 0 <= within <= steps:
        raise CheckpointError(
            f"{filename} took {stored_steps:g} steps an epoch, but this run takes {steps}: "
            "resume with the same global_batch_size and data"
        )
    if within and not isinstance(runner.train_dataloader.sampler, ResumableSampler):
        raise CheckpointError(
            f"{filename} is from within an epoch, where {type(runner.train_dataloader.sampler).__name__} cannot "
            "resume: resume from an epoch_N.pth"
        )


def _check_groups(optimizer: Optimizer, state: Any, filename: str) -> None:
    """Raise ``CheckpointError`` if the names of the optimizer's parameter groups differ."""
    saved_groups = state.get("param_groups") if isinstance(state, dict) else None
    if not isinstance(saved_groups, list) or not all(isinstance(group, dict) for group in saved_groups):
        return  # loading raises an error
    if [group.get("names") for group in saved_groups] != [group.get("names") for group in optimizer.param_groups]:
        raise CheckpointError(
            f"{filename} is of a run with other parameter groups (optim_wrapper.paramwise_cfg): resume with the same "
            "setting"
        )


def _check_schedules(schedules: list, states: Any, filename: str) -> None:
    """Raise ``CheckpointError`` unless each schedule has a state with the expected keys and types."""
    error_prefix = f"{filename} is not a training checkpoint: "
    if not isinstance(states, list) or len(states) != len(schedules):
        raise CheckpointError(f"{error_prefix}its param_schedulers are not the states of {len(schedules)} schedules")
    for state, schedule in zip(states, schedules):
        fresh, name = schedule.state_dict(), type(schedule).__name__
        if not isinstance(state, dict) or state.keys() != fresh.keys():
            raise CheckpointError(f"{error_prefix}the state of {name} does not have the keys of this class")
        for key, value in state.items():
            if not _matches_type(value, fresh[key]):
                raise CheckpointError(
                    f"{error_prefix}{sanitized(key)} in the state of {name} is {sanitized(repr(value), 60)}"
                )


def _matches_type(value: Any, fresh: Any) -> bool:
    if fresh is None:
        return True
    if isinstance(fresh, (bool, str)):
        return value == fresh
    if isinstance(fresh, int):  # a step, or a number that a schedule may also store as a float
        return isinstance(value, (int, float)) and math.isfinite(value) and float(value).is_integer()
    if isinstance(fresh, float):
        return isinstance(value, (int, float)) and math.isfinite(value)
    if isinstance(fresh, (list, tuple)):
        same = isinstance(value, (list, tuple)) and len(value) == len(fresh)
        return same and all(map(_matches_type, value, fresh))
    return isinstance(value, type(fresh))


def check_optimizer_state(optimizer: Optimizer, configured: list[dict], filename: str) -> None:
    """Raise ``CheckpointError`` unless a loaded optimizer state is valid: PyTorch loads any state and fails later.

    The reference is the state after one step of a new optimizer on dummy parameters with the same number of dimensions.

    Args:
        optimizer: the optimizer, with the state loaded.
        configured: the parameter groups before loading.
        filename: the checkpoint, for the message.
    """
    error_prefix = f"{filename} is not a training checkpoint: "
    inner = optimizer.optim if isinstance(optimizer, ShardedOptimizer) else optimizer
    for group, before in zip(optimizer.param_groups, configured):
        for key in before.keys() - {"params"}:
            if key in group and not _same_kind_of_setting(group[key], before[key]):
                value = sanitized(repr(group[key]), 60)
                raise CheckpointError(f"{error_prefix}{sanitized(key)} of its optimizer is {value}")
        references: dict[int, dict | None] = {}
        for parameter in group["params"]:
            state = inner.state.get(parameter, {})
            if not isinstance(state, dict):
                raise CheckpointError(
                    f"{error_prefix}expected a dict as the optimizer state of a parameter, got {type(state).__name__}"
                )
            if parameter.ndim not in references:
                references[parameter.ndim] = _reference_state(type(inner), group, parameter)
            reference = references[parameter.ndim]
            if not reference or parameter not in inner.state:
                continue  # it never had a gradient, or fp16's scaler has skipped all steps so far
            if state.keys() != reference.keys():
                keys = ", ".join(map(sanitized, state)) or "no keys"
                raise CheckpointError(
                    f"{error_prefix}the optimizer state of a parameter has {keys}, "
                    f"{type(inner).__name__} has {', '.join(reference)}"
                )
            for name, value in state.items():
                if not _matches_reference(value, reference[name], parameter):
                    form = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                    raise CheckpointError(
                        f"{error_prefix}{sanitized(name)} in the optimizer state is {form}, for a parameter of shape "
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
    """Return the state of a dummy parameter after one step with a group's settings, or None if the step fails."""
    dummy = torch.nn.Parameter(torch.ones([2 + i for i in range(parameter.ndim)]))
    dummy.grad = torch.ones_like(dummy)
    try:
        optimizer = kind([{**{k: v for k, v in group.items() if k not in ("params", "initial_lr")}, "params": [dummy]}])
        optimizer.step()
    except Exception:  # a user's own optimizer may need more than its group has
        return None
    return {name: (value, dummy) for name, value in optimizer.state[dummy].items()}


def _matches_reference(value: Any, reference: tuple[Any, Tensor], parameter: Tensor) -> bool:
    """Return whether a state's entry corresponds to its parameter as the reference entry does to the dummy."""
    entry, dummy = reference
    if value is None or entry is None:
        return value is None or not isinstance(value, (str, dict, list))
    if not isinstance(entry, Tensor):
        return isinstance(value, (int, float)) if isinstance(entry, (int, float)) else isinstance(value, type(entry))
    if entry.ndim == 0:  # a step count, which older files store as a number
        return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
    if not isinstance(value, Tensor) or not same_dtype_kind(value, entry):
        return False
    return value.shape == parameter.shape if entry.shape == dummy.shape else value.ndim == entry.ndim
