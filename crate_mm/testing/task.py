"""Check a task against the contract of ``crate_mm.models.Task``."""

import copy
from typing import Any

import torch
from torch import Tensor

from ..datasets.base import samples_in
from ..engine.loop import split_batch
from ..models.tasks.base import Task, freeze_untrained, task_of
from .layer import require

TOLERANCE = 1e-4  # of losses in float32, relative to the larger of the loss and 1


def check_task(task: Task, batch: dict[str, Tensor], evaluated: dict[str, Tensor] | None = None) -> None:
    """Check a task on one batch. The task is not changed.

    The checks cover the headline, the losses, the gradients of ``trainable()``, ``predict``, ``features`` and
    ``example``. The loss of a batch must be the mean of its micro-batches' losses, weighted by ``count``. Evaluation
    must be repeatable, the state dict must be sufficient to resume, and a skipped step must change nothing.

    Args:
        task: the task, on its device.
        batch: a training batch from a loader, with at least two samples.
        evaluated: a batch from an evaluation loader (default: the training batch).

    Raises:
        AssertionError: the task violates its contract; the message says how.
    """
    try:
        name, task = type(task).__name__, copy.deepcopy(task_of(task))
    except ValueError as error:
        raise AssertionError(str(error)) from None
    require(samples_in(batch) >= 2, "check_task needs a batch of at least two samples")
    headline = task.headline if "headline" in dir(task) else None
    valid = isinstance(headline, tuple) and len(headline) == 2 and headline[1] in ("greater", "less")
    require(valid, f"{name}.headline must be a metric and 'greater' or 'less', got {headline!r}")
    freeze_untrained(task)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        evaluated = batch if evaluated is None else evaluated
        _check_evaluation(task, evaluated, name)
        _check_micro_batches(task, batch, name)
        trained = copy.deepcopy(task)
        _check_training(trained, batch, name)
        _check_state(task, trained, evaluated, name)


def _loss(task: Task, batch: dict[str, Tensor], name: str) -> Tensor:
    """Return the sum of a batch's losses that training minimizes."""
    losses = task(**task.data_preprocessor(batch, task.training), mode="loss")
    valid = isinstance(losses, dict) and bool(losses)
    require(valid, f"{name}.loss must return a dict of losses, got {type(losses).__name__}")
    minimized = {key: value for key, value in losses.items() if key not in task.logged}
    for key, value in minimized.items():
        require(key.startswith("loss"), f"{name}.loss: the name {key!r} must start with 'loss', or it is not minimized")
        got = f"a tensor of {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        scalar = isinstance(value, Tensor) and not value.ndim
        require(scalar, f"{name}.loss: {key!r} must be a scalar tensor, got {got}")
        require(bool(value.isfinite()), f"{name}.loss: {key!r} is {value.item()}")
    return sum(minimized.values())


@torch.no_grad()
def _check_micro_batches(task: Task, batch: dict[str, Tensor], name: str) -> None:
    """Raise unless the loss, without the randomness of training, is the mean over the counted items."""
    task.eval()
    task.before_step([batch], samples_in(batch))
    total, count = _loss(task, batch, name), task.count(batch)
    if task.mixes_samples:
        return
    parts = split_batch(batch, 2)
    counts = [task.count(part) for part in parts]
    valid = all(isinstance(number, int) and number >= 0 for number in (count, *counts))
    require(valid, f"{name}.count must return a nonnegative integer, got {(count, *counts)}")
    summands = " + ".join(map(str, counts))
    require(sum(counts) == count, f"{name}.count is {count} for a batch, but {summands} for its two parts")
    task.before_step(parts, samples_in(batch))
    losses = [_loss(task, part, name) for part in parts]
    mean = sum(loss * number for loss, number in zip(losses, counts)) / max(count, 1)
    require(
        not count or bool((mean - total).abs() <= TOLERANCE * total.abs().clamp(min=1)),
        f"{name}.loss is {total:.6g} for a batch, but the mean of its two parts, weighted by {name}.count, is "
        f"{mean:.6g}: return the mean over the items of count(), draw random numbers from the batch's sample_seed, or "
        "set mixes_samples to True",
    )


def _check_training(task: Task, batch: dict[str, Tensor], name: str) -> None:
    """Take a gradient step; raise unless finite gradients reach all trained parameters."""
    task.train()
    _loss(task, batch, name).backward()
    trained = {id(parameter) for parameter in task.trainable().parameters()}
    for key, parameter in task.named_parameters():
        if id(parameter) not in trained or not parameter.requires_grad:
            continue
        reached = parameter.grad is not None
        require(reached, f"{name}: no gradient reaches {key}, which is trained: remove it from trainable()")
        require(bool(parameter.grad.isfinite().all()), f"{name}: the gradient of {key} is not finite")
        parameter.data.sub_(parameter.grad, alpha=1e-2)
    task.zero_grad(set_to_none=True)
    with torch.no_grad():
        task.after_step(1, False)
        before = copy.deepcopy(task.state_dict())
        task.after_step(2, True)
    for key, value in task.state_dict().items():
        same = torch.equal(value, before[key])
        require(same, f"{name}.after_step changes {key} although the step was skipped")


@torch.no_grad()
def _check_evaluation(task: Task, batch: dict[str, Tensor], name: str) -> None:
    """Raise unless ``predict``, ``features`` and ``example`` return valid results, the same each time."""
    task.eval()
    size, data = samples_in(batch), task.data_preprocessor(batch, False)
    modes = ["predict"] + ["features"] * (type(task).features is not Task.features)
    for mode in modes:
        first, again = (task(**data, mode=mode) for _ in range(2))
        if mode == "predict":
            require(isinstance(first, list), f"{name}.predict must return a list, got {type(first).__name__}")
        else:
            got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            valid = isinstance(first, Tensor) and first.ndim == 2 and len(first) == size
            require(valid, f"{name}.features must return one vector per sample, ({size}, d), got {got}")
        same = _equal(first, again)
        require(same, f"{name}.{mode} returns a different result for the same batch in eval mode")
    if type(task).example is not Task.example:
        example = task.example()
        for key, value in example.items():
            valid = isinstance(value, Tensor) and len(value) == 1
            require(valid, f"{name}.example must return tensors with one sample: {key!r} is not such a tensor")
        if type(task).tensor is not Task.tensor:
            task(**example, mode="tensor")


@torch.no_grad()
def _check_state(task: Task, trained: Task, batch: dict[str, Tensor], name: str) -> None:
    """Raise unless the state dict restores the task after a step."""
    task.load_state_dict(trained.state_dict())
    data = task.data_preprocessor(batch, False)
    for model in (task, trained):
        model.eval()
    require(
        _equal(task(**data, mode="predict"), trained(**data, mode="predict")),
        f"{name}.predict differs after its state dict is loaded: keep all state in parameters and buffers",
    )
    for model in (task, trained):
        model.train()
        model.after_step(3, False)
    expected = trained.state_dict()
    for key, value in task.state_dict().items():
        require(
            torch.equal(value, expected[key]),
            f"{name}.after_step gives a different {key} after the state dict is loaded: keep all state in parameters "
            "and buffers",
        )


def _equal(a: Any, b: Any) -> bool:
    """Return whether two results are equal, tensors bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b
