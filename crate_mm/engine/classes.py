"""What metrics and messages take from a dataset, and what it and a checkpoint must have in common with a run."""

from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

from ..checkpoints import Checkpoint, CheckpointError
from ..untrusted import shown
from .results import as_data


def give_dataset(evaluator: Evaluator, dataset: Dataset) -> None:
    """Give the dataset to those metrics that ask for it, by an attribute of that name: for file names, say."""
    for metric in evaluator.metrics:
        if hasattr(metric, "dataset"):
            metric.dataset = dataset


def class_names(loader: DataLoader) -> list[str] | None:
    """Class names of a loader's data, or None if it has none."""
    return (getattr(loader.dataset, "metainfo", None) or {}).get("classes")


def check_same_classes(one: str, classes: list[str] | None, other: str, others: list[str] | None) -> None:
    """Raise ``ValueError`` if the class names of both are known and differ: the same label would be two things."""
    if not classes or not others or list(classes) == list(others):
        return
    lacking, further = ([name for name in a if name not in b] for a, b in ((classes, others), (others, classes)))
    if lacking or further:
        said = [f"lacks {_listed(lacking)} of {one}"] if lacking else []
        said += [f"has {_listed(further)}, unknown to {one}"] if further else []
        raise ValueError(f"the {other} {' and '.join(said)}: their classes must be the same")
    label = next(i for i, (a, b) in enumerate(zip(classes, others)) if a != b)
    names = [shown(names[label]) for names in (classes, others)]
    raise ValueError(
        f"class {label} is {names[0]} in {one} and {names[1]} in the {other}: their classes must be the same"
    )


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"the class{'es' * (len(names) > 1)} {', '.join(map(shown, names[:most]))}{more}"


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
            if as_data(stored[key]) != as_data(configured[key]):
                runner.logger.warning(
                    f"{checkpoint.path} was trained with {part}.{key}={shown(repr(stored[key]))}, the config has "
                    f"{shown(repr(configured[key]))}"
                )
    if runner.tests and runner.task.uses_labels:
        names = class_names(runner.test_dataloader)
        try:
            check_same_classes(checkpoint.path, checkpoint.class_names, "test data", names)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
