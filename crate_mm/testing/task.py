"""Check a task against the contract of ``crate_mm.models.Task``."""

import copy
from typing import Any

import torch
from torch import Tensor

from ..engine.loop import split_batch
from ..models.tasks.base import Task, freeze_untrained, task_of

TOLERANCE = 1e-4  # of losses in float32, relative to the larger of the loss and 1


def check_task(task: Task, batch: dict[str, Tensor]) -> None:
    """Check that a task keeps its contract, on one batch. The task is not changed.

    Checked are its headline; its losses and the gradients of ``trainable()``; that the loss of a batch is the mean of
    the losses of its parts, weighted by ``count``; ``predict``, ``features`` and ``example``; that an evaluation is
    repeatable; that the state dict holds all that a resume needs; and that a skipped step changes nothing.

    Args:
        task: on its device.
        batch: of at least two samples, as the loader of training gives it, with all that ``predict`` needs.

    Raises:
        AssertionError: the task breaks its contract; the sentence says where.
    """
    try:
        name, task = type(task).__name__, copy.deepcopy(task_of(task))
    except ValueError as error:
        raise AssertionError(str(error)) from None
    if len(next(iter(batch.values()))) < 2:
        raise AssertionError("check_task needs a batch of at least two samples")
    headline = task.headline if "headline" in dir(task) else None
    if not (isinstance(headline, tuple) and len(headline) == 2 and headline[1] in ("greater", "less")):
        raise AssertionError(f"{name}.headline must be a metric and 'greater' or 'less', got {headline!r}")
    freeze_untrained(task)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _check_evaluation(task, batch, name)
        _check_parts(task, batch, name)
        trained = copy.deepcopy(task)
        _check_training(trained, batch, name)
        _check_state(task, trained, batch, name)


def _loss(task: Task, batch: dict[str, Tensor], name: str) -> Tensor:
    """Return the sum of the losses of a batch, as training minimizes it."""
    losses = task(**task.data_preprocessor(batch, task.training), mode="loss")
    if not isinstance(losses, dict) or not losses:
        raise AssertionError(f"{name}.loss must return a dict of losses, got {type(losses).__name__}")
    for key, value in losses.items():
        if not key.startswith("loss"):
            raise AssertionError(f"{name}.loss: the name {key!r} must begin with 'loss', or it would not be minimized")
        if not isinstance(value, Tensor) or value.ndim:
            got = f"a tensor of {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise AssertionError(f"{name}.loss: {key!r} must be a scalar tensor, got {got}")
        if not value.isfinite():
            raise AssertionError(f"{name}.loss: {key!r} is {value.item()}")
    return sum(losses.values())


@torch.no_grad()
def _check_parts(task: Task, batch: dict[str, Tensor], name: str) -> None:
    """Raise unless the loss, without what is random in training, is the mean over what the task counts."""
    task.eval()
    whole, count = _loss(task, batch, name), task.count(batch)
    if task.mixes_samples:
        return
    parts = split_batch(batch, 2)
    counts = [task.count(part) for part in parts]
    if not all(isinstance(number, int) and number >= 0 for number in (count, *counts)):
        raise AssertionError(f"{name}.count must return a number of at least 0, got {(count, *counts)}")
    if sum(counts) != count:
        of_parts = " + ".join(map(str, counts))
        raise AssertionError(f"{name}.count is {count} for a batch, and {of_parts} for its two parts")
    losses = [_loss(task, part, name) for part in parts]
    mean = sum(loss * number for loss, number in zip(losses, counts)) / max(count, 1)
    if count and (mean - whole).abs() > TOLERANCE * whole.abs().clamp(min=1):
        raise AssertionError(
            f"{name}.loss is {whole:.6g} for a batch, and the mean of its two parts, weighted by {name}.count, is "
            f"{mean:.6g}: let the loss be a mean over what count() counts, draw random numbers by the batch's "
            "sample_seed, or let mixes_samples be true"
        )


def _check_training(task: Task, batch: dict[str, Tensor], name: str) -> None:
    """Take a step of gradient descent; raise unless gradients reach all parameters that are trained, and no others."""
    task.train()
    _loss(task, batch, name).backward()
    trained = {id(parameter) for parameter in task.trainable().parameters()}
    for key, parameter in task.named_parameters():
        if id(parameter) not in trained or not parameter.requires_grad:
            continue
        if parameter.grad is None:
            raise AssertionError(f"{name}: no gradient reaches {key}, which is trained: leave it out of trainable()")
        if not parameter.grad.isfinite().all():
            raise AssertionError(f"{name}: the gradient of {key} is not finite")
        parameter.data.sub_(parameter.grad, alpha=1e-2)
    task.zero_grad(set_to_none=True)
    with torch.no_grad():
        task.after_step(1, False)
        before = copy.deepcopy(task.state_dict())
        task.after_step(2, True)
    changed = [key for key, value in task.state_dict().items() if not torch.equal(value, before[key])]
    if changed:
        raise AssertionError(f"{name}.after_step changes {changed[0]} where the step was skipped")


@torch.no_grad()
def _check_evaluation(task: Task, batch: dict[str, Tensor], name: str) -> None:
    """Raise unless ``predict``, ``features`` and ``example`` return what they promise, the same each time."""
    task.eval()
    size, data = len(next(iter(batch.values()))), task.data_preprocessor(batch, False)
    modes = ["predict"] + ["features"] * (type(task).features is not Task.features)
    for mode in modes:
        first, again = (task(**data, mode=mode) for _ in range(2))
        if mode == "predict" and not isinstance(first, list):
            raise AssertionError(f"{name}.predict must return a list, got {type(first).__name__}")
        if mode == "features" and not (isinstance(first, Tensor) and first.ndim == 2 and len(first) == size):
            got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            raise AssertionError(f"{name}.features must return a vector a sample, ({size}, d), got {got}")
        if not _equal(first, again):
            raise AssertionError(f"{name}.{mode} returns another result for the same batch in eval mode")
    if type(task).example is not Task.example:
        example = task.example()
        wrong = [key for key, value in example.items() if not isinstance(value, Tensor) or len(value) != 1]
        if wrong:
            raise AssertionError(f"{name}.example must return a batch of one sample, its {wrong[0]!r} is none")
        if type(task).tensor is not Task.tensor:
            task(**example, mode="tensor")


@torch.no_grad()
def _check_state(task: Task, trained: Task, batch: dict[str, Tensor], name: str) -> None:
    """Raise unless a state dict makes the task what it was after a step."""
    task.load_state_dict(trained.state_dict())
    data = task.data_preprocessor(batch, False)
    for one in (task, trained):
        one.eval()
    if not _equal(task(**data, mode="predict"), trained(**data, mode="predict")):
        raise AssertionError(
            f"{name}.predict is another one after its state dict is loaded: keep all state in parameters and buffers"
        )
    for one in (task, trained):
        one.train()
        one.after_step(3, False)
    own, others = task.state_dict(), trained.state_dict()
    changed = [key for key in own if not torch.equal(own[key], others[key])]
    if changed:
        raise AssertionError(
            f"{name}.after_step gives another {changed[0]} after the state dict is loaded: keep all state in "
            "parameters and buffers"
        )


def _equal(one: Any, other: Any) -> bool:
    """Whether two results are the same, tensors bit for bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other
