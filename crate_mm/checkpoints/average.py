"""Average the weights of checkpoints: uniformly, or greedily by validation score.

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

# Model settings that affect only training.
TRAINING_KEYS = {"label_smoothing", "batch_augments", "freeze_backbone", "drop_path", "drop_path_rule"}
COUNTER = "num_batches_tracked"  # BatchNorm's; it has no effect with a numeric momentum
STATISTICS = ("running_mean", "running_var")


class Average:
    """Running average of checkpoints, summed in float64.

    Floating-point and complex tensors are averaged, BatchNorm statistics included; these are then not the statistics of
    the averaged weights. For BatchNorm counters the maximum is taken. Other integers and booleans must be equal.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.fixed: dict[str, Tensor] = {}
        self.members: list[Checkpoint] = []  # without their weights

    def including(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return the average with another checkpoint, without adding it.

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
        return _checkpoint_of([*self.members, checkpoint], weights)

    def add(self, checkpoint: Checkpoint) -> None:
        """Add a checkpoint to the average."""
        mean = self.including(checkpoint)
        for name, value in checkpoint.weights.items():
            if value.is_floating_point() or value.is_complex():
                self.sums[name] = self.sums[name] + _wide(value) if name in self.sums else _wide(value)
            self.fixed[name] = mean.weights[name]
        states = {key: {} for key in checkpoint.states if key == "ema_state_dict"}
        states["message_hub"] = {"runtime_info": checkpoint.info}
        self.members.append(replace(checkpoint, weights={}, states=states))

    def mean(self) -> Checkpoint:
        """Return the average of the added checkpoints."""
        return _checkpoint_of(self.members, dict(self.fixed))

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise ``CheckpointError`` unless a checkpoint is of the same model as the added ones."""
        source = sanitized(checkpoint.path)
        if not checkpoint.model:
            raise CheckpointError(
                f"{source} has no model config, so its model cannot be compared with the others': convert it with "
                "tools/convert_official.py"
            )
        if not self.members:
            return
        first = self.members[0]
        difference = next(iter(_differences(first.model, checkpoint.model)), None)
        if difference:
            raise CheckpointError(f"{source} is of another model than {sanitized(first.path)}: {difference}")
        check_state_dict(self.fixed, checkpoint.weights, checkpoint.path, checkpoint.meta)
        if checkpoint.class_names != first.class_names:
            raise CheckpointError(f"{source} has other classes than {sanitized(first.path)}, or another order of them")
        for name, value in checkpoint.weights.items():
            discrete = not (value.is_floating_point() or value.is_complex())
            if discrete and not name.endswith(COUNTER) and not torch.equal(value, self.fixed[name]):
                raise CheckpointError(
                    f"{source} has other values in {sanitized(name)} than {sanitized(first.path)}; integers and "
                    "booleans cannot be averaged"
                )


def average(paths: Iterable[str | Path]) -> tuple[Checkpoint, list[str]]:
    """Return the uniform average of checkpoints, opened one at a time, and notes on it.

    Raises:
        CheckpointError: a file is not a checkpoint, or is of another model than the first.
    """
    total = Average()
    for path in paths:
        total.add(open_checkpoint(path))
    return total.mean(), notes_on(total.members)


class Candidate(NamedTuple):
    """Step of the greedy average: a checkpoint, its score, the score of the average with it, and the decision."""

    path: str
    score: float
    soup_score: float
    accepted: bool


def greedy(
    paths: Iterable[str | Path],
    score: Callable[[Checkpoint], float],
    greater: bool = True,
    finish: Callable[[Checkpoint], Checkpoint] = lambda mean: mean,
) -> tuple[Checkpoint, list[Candidate], list[str]]:
    """Return the greedy average: from the best to the worst, a checkpoint is accepted if it does not lower the score.

    Args:
        paths: the checkpoints.
        score: returns a checkpoint's validation score.
        greater: whether a greater score is better.
        finish: applied to an average before it is scored.

    Returns:
        The average, its steps in order, and notes on it.

    Raises:
        CheckpointError: as ``average``.
    """
    paths = [str(path) for path in paths]
    sign = 1 if greater else -1
    first, scores = Average(), {}
    for path in paths:  # check all checkpoints before validating any
        checkpoint = open_checkpoint(path)
        if not first.members:
            first.add(checkpoint)
        first.check(checkpoint)
    for path in paths:
        scores[path] = score(open_checkpoint(path))
    total, best, candidates = Average(), -float("inf"), []
    for path in sorted(paths, key=lambda path: -sign * scores[path]):
        checkpoint = open_checkpoint(path)
        soup_score = score(finish(total.including(checkpoint))) if total.members else scores[path]
        accepted = not total.members or sign * soup_score >= best
        if accepted:
            total.add(checkpoint)
            best = sign * soup_score
        candidates.append(Candidate(path, scores[path], soup_score, accepted))
    mean = total.mean()
    return finish(mean) if len(total.members) > 1 else mean, candidates, notes_on(total.members)


def has_statistics(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint has BatchNorm running statistics."""
    return any(name.rpartition(".")[2] in STATISTICS for name in checkpoint.weights)


def notes_on(members: list[Checkpoint]) -> list[str]:
    """Return messages on an average of checkpoints."""
    notes = []
    ema_paths = [member.path for member in members if "ema_state_dict" in member.states]
    if ema_paths:
        notes.append(
            f"{len(ema_paths)} of {len(members)} checkpoints already hold weights averaged over training (ema_momentum)"
        )
    if any(member.test_transforms != members[0].test_transforms for member in members):
        notes.append(f"the checkpoints have different test transforms: using those of {sanitized(members[0].path)}")
    return notes


def source_of(checkpoint: Checkpoint) -> str:
    """Return a checkpoint's file name, with its epoch and run if known."""
    epoch = checkpoint.meta.get("epoch")
    details = [f"epoch {epoch}" if epoch is not None else "", f"run {checkpoint.run}" if checkpoint.run else ""]
    details = ", ".join(filter(None, details))
    return sanitized(Path(checkpoint.path).name) + (f" ({details})" if details else "")


def save(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write an average as a checkpoint of weights, with its model config and the names of its members."""
    with atomic_file(path) as file:
        torch.save({"meta": checkpoint.meta, "state_dict": checkpoint.weights}, file)


def _checkpoint_of(members: list[Checkpoint], weights: dict[str, Tensor]) -> Checkpoint:
    first, sources = members[0], [source_of(member) for member in members]
    meta = {"format": FORMAT, "model": first.model, "test_transforms": first.test_transforms, "averaged_from": sources}
    if first.meta.get("transfer_from"):
        meta["transfer_from"] = first.meta["transfer_from"]
    if first.class_names is not None:
        meta["dataset_meta"] = {"classes": list(first.class_names)}
    return replace(first, path=f"the average of {len(members)}", weights=weights, meta=meta, states={}, notes=[])


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def _differences(first: dict, second: dict, place: str = "") -> Iterable[str]:
    """Yield the differences between two model configs, except for ``TRAINING_KEYS``."""
    for key in sorted((first.keys() | second.keys()) - TRAINING_KEYS):
        name, a, b = f"{place}{key}", first.get(key), second.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{name}.")
        elif a != b and not (isinstance(a, (list, tuple)) and list(a) == list(b or ())):
            yield f"its {name} is {sanitized(repr(b), 60)}, not {sanitized(repr(a), 60)}"
