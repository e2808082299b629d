"""Fill in the settings that the training data determine: the number of classes, and the batch of a small dataset."""

import copy

from mmengine.config import Config

from ..datasets.base import dataset_of
from ..io.untrusted import sanitized
from ..registry import DATASETS
from .resolve import resolve_config

MAX_NAMED = 5
_UNKNOWN = "model.head.num_classes is None (the number of classes of the training data)"


def lacks_num_classes(cfg: Config) -> bool:
    """Return whether a config leaves the number of classes to the training data: ``model.head.num_classes`` is None."""
    head = (cfg.get("model") or {}).get("head")
    return isinstance(head, dict) and "num_classes" in head and head["num_classes"] is None


def fill_from_data(cfg: Config, training: bool = False) -> tuple[Config, list[str]]:
    """Return a user's config with the settings that its training data determine, and notes for the log.

    ``model.head.num_classes=None`` becomes the number of classes. In training, ``model.tokenizer=None`` becomes the
    tokenizer that the data name, and ``fit_batch`` limits ``global_batch_size`` to the number of samples. The data are
    read only if the config has one of these settings.

    Raises:
        ValueError: the data do not exist, or do not name their classes.
    """
    fits = training and cfg.get("fit_batch") and cfg.get("global_batch_size")
    model = cfg.get("model") or {}
    lacks_tokenizer = training and "tokenizer" in model and model["tokenizer"] is None
    if not (lacks_num_classes(cfg) or fits or lacks_tokenizer):
        return cfg, []
    cfg, notes = copy.deepcopy(cfg), []
    if not cfg.get("train_dataloader"):
        raise ValueError(f"{_UNKNOWN}, and the config has no train_dataloader: set model.head.num_classes=N")
    try:
        dataset = dataset_of(
            DATASETS.build(resolve_config(cfg, world_size=1, with_model=False).train_dataloader.dataset)
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise ValueError(str(error) if training else f"{_UNKNOWN}: {error}; or set model.head.num_classes=N") from None
    if lacks_num_classes(cfg):
        classes = dataset.classes
        if classes is None:
            raise ValueError(
                f"{_UNKNOWN}, but the data do not name their classes: set --cfg-options model.head.num_classes=N"
            )
        cfg.model.head.num_classes = len(classes)
        more = f" and {len(classes) - MAX_NAMED} more" if len(classes) > MAX_NAMED else ""
        names = ", ".join(map(sanitized, classes[:MAX_NAMED]))
        notes.append(f"model.head.num_classes={len(classes)}, the classes of the training data: {names}{more}")
    if lacks_tokenizer:
        cfg.model.tokenizer = dataset.metainfo.get("tokenizer")
    if fits and cfg.global_batch_size > len(dataset):
        notes.append(
            f"global_batch_size={len(dataset)}, all training samples in each step, because the recipe's batch of "
            f"{cfg.global_batch_size} is larger: set a smaller batch for more steps per epoch"
        )
        cfg.global_batch_size = len(dataset)
    return cfg, notes
