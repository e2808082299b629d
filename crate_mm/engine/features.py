"""What an evaluation without a Runner needs: a config's images as they are tested, and a model with a checkpoint."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn
from torch.utils.data import DataLoader

from ..conversion import from_official, is_official
from ..registry import DATASETS, MODELS
from .checkpoint import CheckpointError, read_checkpoint
from .config import prepare
from .transfer import Transfer, initialize


def build_loader(cfg: Config, split: str = "test", batch_size: int | None = None) -> DataLoader:
    """A loader of a config's 'train', 'val' or 'test' images in their order, transformed as in its test.

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
    ready = prepare(cfg, world_size=1)
    test = ready.test_dataloader
    dataset = DATASETS.build({**test.dataset, "source": ready[f"{split}_dataloader"].dataset.source})
    return DataLoader(
        dataset, batch_size or test.get("batch_size", 64), num_workers=test.num_workers, pin_memory=test.pin_memory
    )


def build_backbone_from(cfg: Config, checkpoint: str | Path) -> tuple[nn.Module, Transfer, dict]:
    """Build a config's model with the backbone of a checkpoint, of ours or of the official code, in eval mode.

    Returns:
        The model on the GPU if there is one, what became of each parameter (see ``initialize``), and what the
        checkpoint says of itself.

    Raises:
        ValueError: the checkpoint cannot be read or is not of this model.
    """
    loaded = read_checkpoint(checkpoint)
    if is_official(loaded):
        loaded = from_official(loaded, str(checkpoint))
    if not cfg.get("model"):
        raise CheckpointError("the config has no model")
    model = MODELS.build(cfg.model)
    transfer = initialize(model, loaded, str(checkpoint))
    return model.to(torch.device(get_device())).eval(), transfer, loaded.get("meta") or {}
