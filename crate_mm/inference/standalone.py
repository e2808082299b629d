"""Evaluate without a Runner: build the test data of a config, and a model with a checkpoint's weights."""

import inspect
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch.utils.data import DataLoader, Subset

from ..checkpoints import Checkpoint, CheckpointError, TransferReport, open_checkpoint, validated_model_config
from ..checkpoints.described import names_for
from ..checkpoints.fit import BACKBONE, load_strict, transfer_backbone
from ..config import (
    defines_model,
    fill_from_data,
    fill_images,
    lacks_num_classes,
    load_config,
    require_model,
    resolve_config,
)
from ..config.kinds import signatures
from ..models.layers import to_pair
from ..models.tasks.base import Task
from ..registry import BACKBONES, DATASETS, FUNCTIONS, MODELS


def build_loader(cfg: Config, split: str = "test", batch_size: int | None = None) -> DataLoader:
    """Return a loader of a config's 'train', 'val' or 'test' data, in order, with the test transforms.

    Args:
        cfg: config as the user wrote it.
        split: split to read.
        batch_size: batch size (default: the config's test batch size).

    Raises:
        ValueError: the config does not define the split, or the data do not exist.
    """
    missing = [name for name in (f"{split}_dataloader", "test_dataloader") if not cfg.get(name)]
    if missing:
        raise ValueError(f"the config has no {missing[0]}")
    resolved = resolve_config(cfg, world_size=1)
    test, dataset = resolved.test_dataloader, resolved[f"{split}_dataloader"].dataset
    if "source" in test.dataset and "source" in dataset:
        dataset = {**test.dataset, "source": dataset.source}
    return DataLoader(
        DATASETS.build(dataset),
        batch_size or test.get("batch_size", 64),
        num_workers=test.num_workers,
        pin_memory=test.pin_memory,
        collate_fn=FUNCTIONS.get(test.collate_fn.type),
    )


def use_folder(cfg: Config, folder: str) -> None:
    """Replace the source of a config's test data by the images below a folder, in place.

    A transform that resizes to the model's image size is added at the end. Most configs' transforms already produce
    this size, but some rely on a dataset whose images all have it.
    """
    channels = len((cfg.model.get("preprocessor") or {}).get("mean", "RGB"))
    dataset, size = cfg.test_dataloader.dataset, (cfg.model.get("backbone") or {}).get("img_size")
    dataset.source = {"type": "ImageFiles", "root": folder, "channels": channels}
    if dataset.get("type") == "SegmentationDataset":  # the folder has no masks
        dataset.type = "ClassificationDataset"
        dataset.pop("transform_masks", None)
    if size is not None:
        dataset.transforms = [*dataset.get("transforms", ()), {"type": "Resize", "size": to_pair(size)}]


def set_image_size(cfg: Config, size: int | tuple[int, int]) -> bool:
    """Set the image size of a config's backbone in place; return False if the backbone has no such argument."""
    backbone = cfg.model.get("backbone")
    receivers = signatures(BACKBONES.get(backbone["type"])) if backbone else ()
    if not any("img_size" in inspect.signature(receiver).parameters for receiver in receivers):
        return False
    backbone.img_size = size
    return True


def subset(loader: DataLoader, positions: list[int]) -> DataLoader:
    """Return a loader of the samples at ``positions`` in a loader's dataset."""
    workers = loader.num_workers if len(positions) > (loader.batch_size or 1) else 0
    return DataLoader(
        Subset(loader.dataset, positions), loader.batch_size, num_workers=workers, collate_fn=loader.collate_fn
    )


def load_config_and_checkpoint(
    config: str | Path | Config,
    checkpoint: str | Path | Checkpoint | None,
    overrides: dict | None = None,
    needed: bool = True,
    **kwargs: Any,
) -> tuple[Config, Checkpoint | None]:
    """Load a config and open a checkpoint. If the config defines no model, it takes the checkpoint's model.

    ``"model"`` in the config's transforms becomes the size of the model's images (``fill_images``).

    Args:
        config, overrides, kwargs: as for ``load_config``.
        checkpoint: a file of crate_mm or of third-party code, an open checkpoint, or None.
        needed: open the checkpoint even if the config defines the model.

    Raises:
        ValueError: as ``load_config`` and ``open_checkpoint``, or neither config nor checkpoint defines the model.
    """
    config = load_config(config)
    takes_model = bool(checkpoint) and kwargs.get("model") is None and not defines_model(config)
    loaded = checkpoint if isinstance(checkpoint, Checkpoint) else None
    if checkpoint and not loaded and (needed or takes_model):
        loaded = open_checkpoint(checkpoint)
    if takes_model:
        kwargs["model"] = validated_model_config(loaded)
        loaded.gives_model = True
    cfg = load_config(config, overrides, **kwargs)
    head = loaded.model.get("head") if loaded is not None and needed and loaded.model else None
    if lacks_num_classes(cfg) and isinstance(head, dict) and "num_classes" in head:
        cfg.model.head.num_classes = head["num_classes"]  # keep the checkpoint's head
    if defines_model(cfg):
        with names_for(loaded):
            fill_images(cfg)
    return cfg, loaded


def build_model(cfg: Config, checkpoint: Checkpoint | None) -> Task:
    """Build the model of a config of ``load_config_and_checkpoint``, with new weights.

    Raises:
        ValueError: the config defines no model or names an unknown class.
    """
    require_model(cfg)
    cfg, _ = fill_from_data(cfg)
    with names_for(checkpoint):
        return MODELS.build(cfg.model)


def build_transferred_model(cfg: Config, checkpoint: Checkpoint) -> tuple[Task, TransferReport]:
    """Build the model of a config in eval mode and load its backbone from a checkpoint.

    If the checkpoint is of the same model, all its weights are loaded, not only the backbone's: a task may compute its
    features with another part of the model, such as a teacher. A checkpoint with equal shapes but another
    patch grid is not of the same model.

    Returns:
        The model, on the GPU if there is one, and the ``TransferReport`` (see ``transfer_backbone``).

    Raises:
        ValueError: the checkpoint is of another model, or lacks part of the backbone.
    """
    model = build_model(cfg, checkpoint)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    resizing = cfg.get("resize_positions", "bicubic"), cfg.get("resize_patches")
    own = cfg.get("transfer_from") is None and not checkpoint.parts
    if own and shapes == {n: value.shape for n, value in checkpoint.weights.items()}:
        report = transfer_backbone(model, checkpoint, *resizing, "backbone")
        if not report.resized:
            load_strict(model, checkpoint)
            used = f"{model.transfer_from}."  # part that computes the features
            by_use: dict[bool, dict[str, str]] = {True: {}, False: {}}
            for name, shape in {**report.loaded, **report.dropped}.items():
                by_use[name.startswith(used)][name] = shape
            report = TransferReport(by_use[True], {}, by_use[False], {})
            return model.to(torch.device(get_device())).eval(), report
    report = transfer_backbone(model, checkpoint, *resizing, cfg.get("transfer_from"))
    unfilled = [name for name in report.new if name.startswith(BACKBONE)]
    if unfilled:
        name = unfilled[0]
        shape = report.dropped.get(name)
        has = f"{name} is {shape} in the checkpoint" if shape else f"the checkpoint has no {name}"
        raise CheckpointError(
            f"{checkpoint.path} does not fill the whole backbone, so the backbone's features would be partly random: "
            f"{has}; give the backbone the sizes of the checkpoint, or train the model first (--load-from)"
        )
    return model.to(torch.device(get_device())).eval(), report
