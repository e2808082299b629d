"""Average the weights of checkpoints, uniformly or greedily by validation score, and recompute BatchNorm statistics.

Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018; Wortsman et al.,
"Model soups", ICML 2022 (greedy average: Recipe 1).
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import Tensor
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from ..checkpoints import Checkpoint, CheckpointError, build_from_checkpoint, check_state_dict, open_checkpoint
from ..checkpoints.fit import load_strict
from ..checkpoints.validate import FORMAT
from ..config import fill_banks
from ..engine import Runner
from ..io.files import atomic_file
from ..io.untrusted import sanitized
from ..registry import FUNCTIONS
from .sample_preview import SamplePreview

# Model settings that affect only training.
TRAINING_KEYS = {"label_smoothing", "batch_augments", "freeze_backbone", "drop_path", "drop_path_rule"}
COUNTER = "num_batches_tracked"  # BatchNorm's counter, which is unused if momentum is a number
STATISTICS = ("running_mean", "running_var")
MAX_BATCH_SIZE = 256  # in with_own_statistics


class Average:
    """Running average of checkpoints, summed in float64.

    Floating-point and complex tensors are averaged, BatchNorm statistics included. Averaged statistics differ from the
    averaged model's statistics. For BatchNorm counters the maximum is taken. Other integers and booleans must be equal.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.fixed: dict[str, Tensor] = {}
        self.members: list[Checkpoint] = []  # without their weights

    def including(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return the average including another checkpoint, which is not added.

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
        """Raise ``CheckpointError`` unless a checkpoint is of the same model as the added checkpoints."""
        source = sanitized(checkpoint.path)
        if not checkpoint.model:
            raise CheckpointError(
                f"{source} has no model config, so its model cannot be compared: convert the file with "
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
            raise CheckpointError(f"{source} has other classes than {sanitized(first.path)}, or in another order")
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
    """Step of the greedy average: a checkpoint, its score, the average's score with it, and whether it is accepted."""

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
        finish: function that is applied to an average before scoring.

    Returns:
        The average, its steps in order, and notes on it.

    Raises:
        CheckpointError: as in ``average``.
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


@contextmanager
def validating(cfg: Config) -> Iterator["Validation"]:
    """Yield a function that validates checkpoints of a config's model.

    Raises:
        ValueError: the config has no validation or does not build.
    """
    cfg = cfg.copy()
    if not cfg.get("val_dataloader") or not cfg.get("val_evaluator"):
        raise ValueError("choosing checkpoints by their score needs a config with val_dataloader and val_evaluator")
    fill_banks(cfg)
    for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "ema_momentum", "visualizer"):
        cfg[key] = None
    cfg.update(test_dataloader=None, test_cfg=None, test_evaluator=None, val_cfg=cfg.get("val_cfg") or {})
    cfg.update(load_from=None, resume=False, launcher="none", log_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        yield Validation(Runner.from_cfg(cfg))


class Validation:
    """Score checkpoints by the task's headline metric.

    Attributes:
        metric: name of the metric.
        greater: whether greater values are better.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.metric, rule = runner.task.headline
        self.greater = rule == "greater"

    def __call__(self, checkpoint: Checkpoint) -> float:
        """Return the headline metric of a checkpoint.

        Raises:
            CheckpointError: the checkpoint does not match the config's model.
        """
        load_strict(self.runner.task, checkpoint)
        return float(self.runner.val()[self.metric])


def with_own_statistics(checkpoint: Checkpoint, cfg: Config, images: int = 4096) -> Checkpoint:
    """Return the checkpoint with BatchNorm statistics recomputed for its weights, as the mean over training batches.

    The batches are the first of the first epoch, augmented as in training, except for batch augmentation. The batch
    size is the config's, at most ``MAX_BATCH_SIZE``. Dropout and stochastic depth are active.

    Args:
        checkpoint: a checkpoint with a model config.
        cfg: a config with the training data.
        images: number of training images.

    Raises:
        ValueError: the data does not exist, or is less than one batch.
    """
    samples = SamplePreview(cfg)
    size = min(samples.batch_size, MAX_BATCH_SIZE, images)
    samples.sampler.set_epoch(0)
    indices = list(islice(samples.sampler, images // size * size))
    model = {**checkpoint.model}
    model.pop("freeze_backbone", None)  # a frozen backbone does not update its statistics
    task = build_from_checkpoint(replace(checkpoint, model=model))
    load_strict(task, checkpoint)
    task = task.to(get_device())
    loader = DataLoader(samples.dataset, size, sampler=indices, collate_fn=FUNCTIONS.get("collate"), drop_last=True)
    update_bn((task.data_preprocessor({"inputs": batch["inputs"]})["inputs"] for batch in loader), task)
    weights = {name: value.cpu() for name, value in task.state_dict().items()}
    return replace(checkpoint, weights={name: weights[name].to(old.dtype) for name, old in checkpoint.weights.items()})
