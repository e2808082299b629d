"""The average of checkpoints' weights: uniform, or greedy by a validation.

Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018; Wortsman et al.,
"Model soups", ICML 2022, whose greedy soup is Recipe 1.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..io.files import atomic_file
from ..io.untrusted import sanitized
from .fit import check_state_dict
from .open import open_checkpoint
from .unwrap import Checkpoint
from .validate import FORMAT, CheckpointError

# Of a model's config: what changes its training and not what it computes when it is used.
OF_TRAINING = {"label_smoothing", "batch_augments", "freeze_backbone", "drop_path", "drop_path_rule"}
COUNTER = "num_batches_tracked"  # of BatchNorm, whose momentum is a number: nothing follows from it
STATISTICS = ("running_mean", "running_var")


class Average:
    """An average that grows, its sums in float64.

    What is real is averaged, BatchNorm's statistics too. Those are then not the statistics of the averaged weights. Of
    BatchNorm's counters the largest is taken. Other whole numbers and truth values must be the same in all.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.fixed: dict[str, Tensor] = {}
        self.members: list[Checkpoint] = []  # without their weights

    def with_(self, checkpoint: Checkpoint) -> Checkpoint:
        """The average with one more, which is not added.

        Raises:
            CheckpointError: the checkpoint is of another model.
        """
        self.check(checkpoint)
        count = len(self.members) + 1
        weights = {}
        for name, value in checkpoint.weights.items():
            dtype = self.fixed[name].dtype if self.members else value.dtype
            if value.is_floating_point() or value.is_complex():
                total = _wide(value) + self.sums[name] if self.members else _wide(value)
                weights[name] = (total / count).to(dtype)
            elif name.endswith(COUNTER) and self.members:
                weights[name] = torch.maximum(value, self.fixed[name])
            else:
                weights[name] = value.clone()
        return _described([*self.members, checkpoint], weights)

    def add(self, checkpoint: Checkpoint) -> None:
        """Let a checkpoint be one of those that are averaged."""
        mean = self.with_(checkpoint)
        for name, value in checkpoint.weights.items():
            if value.is_floating_point() or value.is_complex():
                self.sums[name] = self.sums[name] + _wide(value) if name in self.sums else _wide(value)
            self.fixed[name] = mean.weights[name]
        states = {key: {} for key in checkpoint.states if key == "ema_state_dict"}
        states["message_hub"] = {"runtime_info": checkpoint.info}
        self.members.append(replace(checkpoint, weights={}, states=states))

    def mean(self) -> Checkpoint:
        """The average of what was added."""
        return _described(self.members, dict(self.fixed))

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise ``CheckpointError`` unless a checkpoint is of the model of those that were added."""
        source = sanitized(checkpoint.path)
        if not checkpoint.model:
            raise CheckpointError(
                f"{source} has no model config, so that it is not known whether it is the others': "
                "tools/convert_official.py writes a file that says it"
            )
        if not self.members:
            return
        first = self.members[0]
        differing = next(iter(_differing(first.model, checkpoint.model)), None)
        if differing:
            raise CheckpointError(f"{source} is of another model than {sanitized(first.path)}: {differing}")
        check_state_dict(self.fixed, checkpoint.weights, checkpoint.path, checkpoint.meta)
        if checkpoint.class_names != first.class_names:
            raise CheckpointError(
                f"{source} has other classes than {sanitized(first.path)}: their order must be the same"
            )
        for name, value in checkpoint.weights.items():
            whole = not (value.is_floating_point() or value.is_complex())
            if whole and not name.endswith(COUNTER) and not torch.equal(value, self.fixed[name]):
                raise CheckpointError(
                    f"{source} has other numbers in {sanitized(name)} than {sanitized(first.path)}, of which there is no mean"
                )


def average(paths: Iterable[str | Path]) -> tuple[Checkpoint, list[str]]:
    """The uniform average of checkpoints, which are opened one after the other; and what is to be said of it.

    Raises:
        CheckpointError: a file is no checkpoint, or of another model than the first.
    """
    total = Average()
    for path in paths:
        total.add(open_checkpoint(path))
    return total.mean(), notes_on(total.members)


class Tried(NamedTuple):
    """A step of the greedy average: the checkpoint, its own score, the score of the average with it, and whether it
    stays in."""

    path: str
    alone: float
    together: float
    kept: bool


def greedy(
    paths: Iterable[str | Path],
    score: Callable[[Checkpoint], float],
    greater: bool = True,
    finish: Callable[[Checkpoint], Checkpoint] = lambda mean: mean,
) -> tuple[Checkpoint, list[Tried], list[str]]:
    """The greedy average: from the best checkpoint on, each stays in if the average with it is no worse.

    Args:
        paths: the checkpoints.
        score: of a checkpoint, on a validation.
        greater: whether a greater score is better.
        finish: what is done to an average before it is scored.

    Returns:
        The average, its steps in their order, and what is to be said of it.

    Raises:
        CheckpointError: as ``average``.
    """
    paths = [str(path) for path in paths]
    sign = 1 if greater else -1
    first, alone = Average(), {}
    for path in paths:
        opened = open_checkpoint(path)
        if not first.members:
            first.add(opened)
        first.check(opened)  # all of them before the work
    for path in paths:
        alone[path] = score(open_checkpoint(path))
    total, best, tried = Average(), -float("inf"), []
    for path in sorted(paths, key=lambda path: -sign * alone[path]):
        opened = open_checkpoint(path)
        together = score(finish(total.with_(opened))) if total.members else alone[path]
        kept = not total.members or sign * together >= best
        if kept:
            total.add(opened)
            best = sign * together
        tried.append(Tried(path, alone[path], together, kept))
    mean = total.mean()
    return finish(mean) if len(total.members) > 1 else mean, tried, notes_on(total.members)


def has_statistics(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint holds BatchNorm's running statistics."""
    return any(name.rpartition(".")[2] in STATISTICS for name in checkpoint.weights)


def notes_on(members: list[Checkpoint]) -> list[str]:
    """What is to be said of an average."""
    notes = []
    averaged = [member.path for member in members if "ema_state_dict" in member.states]
    if averaged:
        notes.append(f"of {len(averaged)} of them the weights are averages over the training (ema_momentum) already")
    if any(member.test_transforms != members[0].test_transforms for member in members):
        notes.append(f"they were tested with different transforms: those of {sanitized(members[0].path)} are kept")
    return notes


def source_of(checkpoint: Checkpoint) -> str:
    """A checkpoint's name, with its epoch and run as far as it says them."""
    epoch = checkpoint.meta.get("epoch")
    told = [f"epoch {epoch}" if epoch is not None else "", f"run {checkpoint.run}" if checkpoint.run else ""]
    told = ", ".join(filter(None, told))
    return sanitized(Path(checkpoint.path).name) + (f" ({told})" if told else "")


def save(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write an average as a checkpoint of weights, which says what model it is of and what it is the average of."""
    with atomic_file(path) as file:
        torch.save({"meta": checkpoint.meta, "state_dict": checkpoint.weights}, file)


def _described(members: list[Checkpoint], weights: dict[str, Tensor]) -> Checkpoint:
    first, sources = members[0], [source_of(member) for member in members]
    meta = {"format": FORMAT, "model": first.model, "test_transforms": first.test_transforms, "averaged_from": sources}
    if first.meta.get("transfer_from"):
        meta["transfer_from"] = first.meta["transfer_from"]
    if first.class_names is not None:
        meta["dataset_meta"] = {"classes": list(first.class_names)}
    return replace(first, path=f"the average of {len(members)}", weights=weights, meta=meta, states={}, notes=[])


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def _differing(one: dict, other: dict, place: str = "") -> Iterable[str]:
    """What two models' configs have otherwise, but for what is of training alone."""
    for key in sorted((one.keys() | other.keys()) - OF_TRAINING):
        name, mine, theirs = f"{place}{key}", one.get(key), other.get(key)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            yield from _differing(mine, theirs, f"{name}.")
        elif mine != theirs and not (isinstance(mine, (list, tuple)) and list(mine) == list(theirs or ())):
            yield f"its {name} is {sanitized(repr(theirs), 60)}, not {sanitized(repr(mine), 60)}"
