"""What metrics and messages take from a dataset, and what it and a checkpoint must have in common with a run."""

from typing import Any

from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

from ...checkpoints import Checkpoint, CheckpointError
from ...datasets.base import dataset_of
from ...io.untrusted import sanitized
from ...models.tasks.base import Task
from ..checkpointing.results import describe_recipe, to_builtin


def prepare_metrics(evaluator: Evaluator, dataset: Dataset, task: Task) -> None:
    """Give the dataset (for file names) and the task (for features) to the metrics with an attribute of that name."""
    for metric in evaluator.metrics:
        for name, value in (("dataset", dataset), ("task", task)):
            if hasattr(metric, name):
                setattr(metric, name, value)


def class_names(loader: DataLoader) -> list[str] | None:
    """Class names of a loader's data, or None if it has none."""
    return dataset_of(loader.dataset).classes


def check_same_classes(one: str, classes: list[str] | None, other: str, others: list[str] | None) -> None:
    """Raise ``ValueError`` if the class names of both are known and differ: the same label would be two things."""
    if not classes or not others or list(classes) == list(others):
        return
    lacking, further = ([name for name in a if name not in b] for a, b in ((classes, others), (others, classes)))
    if len(classes) != len(others) and (lacking or further):
        said = [f"lacks {_listed(lacking)} of {one}"] if lacking else []
        said += [f"has {_listed(further)}, unknown to {one}"] if further else []
        raise ValueError(f"the {other} {' and '.join(said)}: their classes must be the same")
    label = next((i for i, (a, b) in enumerate(zip(classes, others)) if a != b), min(len(classes), len(others)))
    names = [sanitized(names[label]) if label < len(names) else "nothing" for names in (classes, others)]
    raise ValueError(
        f"class {label} is {names[0]} in {one} and {names[1]} in the {other}: their classes must be the same"
    )


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"the class{'es' * (len(names) > 1)} {', '.join(map(sanitized, names[:most]))}{more}"


def say_other_recipe(runner: Runner, checkpoint: Checkpoint) -> None:
    """Warn where a run goes on with other settings than the checkpoint's: an option may have been forgotten.

    The schedule says itself that its length has changed.
    """
    stored, own = checkpoint.meta.get("recipe") or {}, describe_recipe(runner.cfg)
    changed = [
        f"{key}={sanitized(repr(was), 60)}, now {sanitized(repr(now), 60)}"
        for part in stored.keys() & own.keys() - {"max_epochs", "max_steps"}
        for key, was, now in _differences(stored[part], own[part], part)
    ]
    if changed:
        more = f"; and {len(changed) - 5} more settings" if len(changed) > 5 else ""
        runner.logger.warning(
            f"{checkpoint.path} was trained with other settings: {'; '.join(sorted(changed)[:5])}{more}"
        )


def _differences(one: Any, other: Any, where: str) -> list[tuple[str, Any, Any]]:
    """The settings that differ, each by its name in dots; 'nothing' stands for one that is not there."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({**one, **other}, key=str)
        pairs = [(f"{where}.{key}", one.get(key, "nothing"), other.get(key, "nothing")) for key in keys]
        return [found for key, a, b in pairs for found in _differences(a, b, key)]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [found for n, (a, b) in enumerate(zip(one, other)) for found in _differences(a, b, f"{where}.{n}")]
    return [] if one == other else [(where, one, other)]


def compare_with_config(runner: Runner, checkpoint: Checkpoint) -> None:
    """Warn where a checkpoint's model differs from the config's in what shapes do not tell.

    Raises:
        CheckpointError: the classes of the test data are others than those of the checkpoint.
    """
    trained = checkpoint.model or {}
    for part, stored in trained.items():
        configured = runner.cfg.model.get(part)
        if not isinstance(stored, dict) or not isinstance(configured, dict):
            continue
        for key in stored.keys() & configured.keys() - {"num_classes"}:
            if to_builtin(stored[key]) != to_builtin(configured[key]):
                runner.logger.warning(
                    f"{checkpoint.path} was trained with {part}.{key}={sanitized(repr(stored[key]))}, the config has "
                    f"{sanitized(repr(configured[key]))}"
                )
    if runner.is_testing and runner.task.uses_labels:
        names = class_names(runner.test_dataloader)
        try:
            check_same_classes(checkpoint.path, checkpoint.class_names, "test data", names)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
