"""What metrics and messages take from a dataset: itself, and the names of its classes."""

from mmengine.evaluator import Evaluator
from torch.utils.data import DataLoader, Dataset

from ..untrusted import shown


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
    if classes and others and list(classes) != list(others):
        label = next((i for i, (a, b) in enumerate(zip(classes, others)) if a != b), min(len(classes), len(others)))
        names = [shown(names[label]) if label < len(names) else "nothing" for names in (classes, others)]
        raise ValueError(
            f"class {label} is {names[0]} in {one} and {names[1]} in the {other}: their classes must be the same"
        )
