"""Compare a run's classes, recipe and model config with those of its datasets and checkpoint."""

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
    """Set the attributes ``dataset`` (for file names) and ``task`` (for features) of the metrics that have them."""
    for metric in evaluator.metrics:
        for name, value in (("dataset", dataset), ("task", task)):
            if hasattr(metric, name):
                setattr(metric, name, value)


def class_names(loader: DataLoader) -> list[str] | None:
    """Return the class names of a loader's data, or None if the data do not name their classes."""
    return dataset_of(loader.dataset).classes


def check_same_classes(name_a: str, a: list[str] | None, name_b: str, b: list[str] | None) -> None:
    """Raise ``ValueError`` if both lists of class names are known and differ: a label would have two meanings."""
    if not a or not b or list(a) == list(b):
        return
    missing, additional = [name for name in a if name not in b], [name for name in b if name not in a]
    if len(a) != len(b) and (missing or additional):
        differences = [f"lacks {_listed(missing)} of {name_a}"] if missing else []
        differences += [f"has {_listed(additional)}, unknown to {name_a}"] if additional else []
        raise ValueError(f"the {name_b} {' and '.join(differences)}: their classes must be the same")
    label = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    names = [sanitized(names[label]) if label < len(names) else "nothing" for names in (a, b)]
    raise ValueError(
        f"class {label} is {names[0]} in {name_a} and {names[1]} in the {name_b}: their classes must be the same"
    )


def _listed(names: list[str], max_names: int = 5) -> str:
    more = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return f"the class{'es' * (len(names) > 1)} {', '.join(map(sanitized, names[:max_names]))}{more}"


def warn_other_recipe(runner: Runner, checkpoint: Checkpoint) -> None:
    """Warn if a resumed run's settings differ from the checkpoint's: an option may have been forgotten.

    The schedule itself warns if its length has changed.
    """
    stored, own = checkpoint.meta.get("recipe") or {}, describe_recipe(runner.cfg)
    changed = [
        f"{key}={sanitized(repr(was), 60)}, now {sanitized(repr(now), 60)}"
        for part in stored.keys() & own.keys() - {"max_epochs", "max_steps"}
        for key, was, now in _differences(stored[part], own[part], part)
    ]
    texts = checkpoint.meta.get("dataset_meta") or {}, dataset_of(runner.train_dataloader.dataset).metainfo
    if all("tokens" in text for text in texts):  # text data, such as Python's own library, may change
        known = [{key: text.get(key) for key in ("tokenizer", "bytes", "tokens")} for text in texts]
        changed += [f"{key}={was}, now {now}" for key, was, now in _differences(*known, "train_data")]
    if changed:
        more = f"; and {len(changed) - 5} more settings" if len(changed) > 5 else ""
        runner.logger.warning(
            f"{checkpoint.path} was trained with other settings: {'; '.join(sorted(changed)[:5])}{more}"
        )


def _differences(a: Any, b: Any, path: str) -> list[tuple[str, Any, Any]]:
    """Return (dotted name, value in a, value in b) of the settings that differ; a missing setting is 'nothing'."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted({**a, **b}, key=str)
        pairs = [(f"{path}.{key}", a.get(key, "nothing"), b.get(key, "nothing")) for key in keys]
        return [difference for key, x, y in pairs for difference in _differences(x, y, key)]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = [(f"{path}.{n}", x, y) for n, (x, y) in enumerate(zip(a, b))]
        return [difference for key, x, y in pairs for difference in _differences(x, y, key)]
    return [] if a == b else [(path, a, b)]


def compare_with_config(runner: Runner, checkpoint: Checkpoint) -> None:
    """Warn if a checkpoint's model differs from the config's in settings that tensor shapes do not determine.

    Raises:
        CheckpointError: the classes of the test data differ from those of the checkpoint.
    """
    trained = checkpoint.model or {}
    for part, stored in trained.items():
        configured = runner.cfg.model.get(part)
        if not isinstance(stored, dict) or not isinstance(configured, dict):
            continue
        for key in stored.keys() & configured.keys() - {"num_classes"}:
            if to_builtin(stored[key]) != to_builtin(configured[key]):
                runner.logger.warning(
                    f"{checkpoint.path} was trained with {part}.{key}={sanitized(repr(stored[key]))}, but the config "
                    f"has {sanitized(repr(configured[key]))}"
                )
    if runner.is_testing and runner.task.uses_labels:
        names = class_names(runner.test_dataloader)
        try:
            check_same_classes(checkpoint.path, checkpoint.class_names, "test data", names)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
