"""What an evaluation without a Runner needs: a config's data as it is tested, and a model with a checkpoint."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoints import Checkpoint, CheckpointError, TransferReport, open_checkpoint, validated_model_config
from ..checkpoints.fit import BACKBONE, load_strict, transfer_backbone
from ..config import defines_model, load_config, require_model, resolve_config
from ..registry import DATASETS, FUNCTIONS, MODELS, registered_only


def build_loader(cfg: Config, split: str = "test", batch_size: int | None = None) -> DataLoader:
    """A loader of a config's 'train', 'val' or 'test' data in their order, transformed as in its test.

    Args:
        cfg: a user's config.
        split: whose source is taken.
        batch_size: the config's for testing if not given.

    Raises:
        ValueError: the config has no such data, or it is not there.
    """
    missing = [name for name in (f"{split}_dataloader", "test_dataloader") if not cfg.get(name)]
    if missing:
        raise ValueError(f"the config has no {missing[0]}")
    ready = resolve_config(cfg, world_size=1)
    test, wanted = ready.test_dataloader, ready[f"{split}_dataloader"].dataset
    if "source" in test.dataset and "source" in wanted:
        wanted = {**test.dataset, "source": wanted.source}
    return DataLoader(
        DATASETS.build(wanted),
        batch_size or test.get("batch_size", 64),
        num_workers=test.num_workers,
        pin_memory=test.pin_memory,
        collate_fn=FUNCTIONS.get(test.collate_fn.type),
    )


def load_config_for(
    config: str | Path | Config,
    checkpoint: str | Path | Checkpoint | None,
    overrides: dict | None = None,
    needed: bool = True,
    **kwargs: Any,
) -> tuple[Config, Checkpoint | None]:
    """Load a config, and open a checkpoint; a config that does not name its model takes the checkpoint's.

    Args:
        config, overrides, kwargs: as for ``load_config``.
        checkpoint: a file of ours or of another code base, one that is open already, or None.
        needed: whether it is opened in any case, or only for its model.

    Raises:
        ValueError: as ``load_config``, ``open_checkpoint``, and where neither says what the model is.
    """
    config = load_config(config)
    asked = bool(checkpoint) and kwargs.get("model") is None and not defines_model(config)
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else None
    if checkpoint and not opened and (needed or asked):
        opened = open_checkpoint(checkpoint)
    if asked:
        kwargs["model"] = validated_model_config(opened)
        opened.gives_model = True
    return load_config(config, overrides, **kwargs), opened


def build_model(cfg: Config, opened: Checkpoint | None) -> nn.Module:
    """Build the model of ``load_config_for``'s config, with new weights.

    A config is code and may name any class. A model that the checkpoint gives is data: its parts are registered.

    Raises:
        ValueError: the config names no model, or a part that there is not.
    """
    require_model(cfg)
    with registered_only() if opened is not None and opened.gives_model else nullcontext():
        return MODELS.build(cfg.model)


def build_backbone_from(cfg: Config, opened: Checkpoint) -> tuple[nn.Module, TransferReport]:
    """Build a config's model with the backbone of a checkpoint, of ours or of another code base, in eval mode.

    A checkpoint of the same model fills all of it, as a task's features may come from another part, such as a teacher.

    Returns:
        The model on the GPU if there is one, and what became of each parameter (see ``transfer_backbone``).

    Raises:
        ValueError: the checkpoint is not of this model, or lacks a part of its backbone.
    """
    model = build_model(cfg, opened)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    if cfg.get("transfer_from") is None and shapes == {n: value.shape for n, value in opened.weights.items()}:
        load_strict(model, opened)
        text = {name: " x ".join(map(str, shape)) or "scalar" for name, shape in shapes.items()}
        loaded = {name: shape for name, shape in text.items() if name.startswith(BACKBONE)}
        unused = {name: shape for name, shape in text.items() if name.startswith("head.")}
        return model.to(torch.device(get_device())).eval(), TransferReport(loaded, {}, unused, {})
    settings = cfg.get("resize_positions", "bicubic"), cfg.get("resize_patches"), cfg.get("transfer_from")
    table = transfer_backbone(model, opened, *settings)
    unfilled = [name for name in table.new if name.startswith(BACKBONE)]
    if unfilled:
        name = unfilled[0]
        has = f"its {name} is {table.dropped[name]}" if name in table.dropped else f"{name} is not in it"
        raise CheckpointError(
            f"{opened.path} does not fill the whole backbone, whose features would be partly random: {has}; give the "
            "backbone the sizes of the checkpoint, or train it first (--load-from)"
        )
    return model.to(torch.device(get_device())).eval(), table
