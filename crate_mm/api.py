"""Public API: models by name or config, and prediction on images."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from .checkpoints import CheckpointError, as_checkpoint, build_from_checkpoint, open_checkpoint
from .checkpoints.fit import load_strict
from .checkpoints.readers.npz import as_tensor
from .inference.model_factory import finish_loading, get_model, list_models, load_model  # noqa: F401  public API
from .inference.predictor import Predictor, default_class_names  # noqa: F401  public API
from .inference.standalone import build_model, load_config_and_checkpoint
from .io.log import print_log
from .models.tasks.base import Task


def init_model(
    config: str | Path | Config | None, checkpoint: str | Path | None = None, device: str | torch.device = "cpu"
) -> Task:
    """Build the model of a config in eval mode, and load a checkpoint if one is given.

    Args:
        config: a config, its file, or the name of a packaged config ('crate_base_in1k'). None takes the model config
            from the checkpoint. A checkpoint's config can only name registered classes: it cannot import or run code.
        checkpoint: a checkpoint of this package or of the official code: a path, ``https://host/file``,
            hf://owner/repo/file (append '@revision' for a branch, tag or commit), or the name of published weights
            ('crate_mini_digits', 'crate_alpha_base_in1k').
        device: device of the model.

    Raises:
        ValueError: the config or checkpoint does not exist, or they do not match.
    """
    if config is None:
        if checkpoint is None:
            raise ValueError("expected a config or a checkpoint, got neither")
        return load_model(checkpoint).to(device)
    cfg, loaded = load_config_and_checkpoint(config, checkpoint, full_model=True)
    model = build_model(cfg, loaded)
    if loaded is not None:
        finish_loading(model, loaded)
    test = (cfg.get("test_dataloader") or {}).get("dataset") or {}
    if "transforms" in test:
        model.test_transforms, model.described_by = test["transforms"], None
    return model.to(device).eval()


def from_official(source: str | Path | Mapping[str, Any], **model_args: Any) -> Task:
    """Build the model of a third-party checkpoint and load its weights in their dtype, in eval mode::

        from_official("crate_alpha_B16.pth")
        from_official("crate-demo.pth", num_heads=6)

    The names and shapes of the weights determine the model. An argument that shapes do not determine is taken from the
    published model of these shapes, if there is exactly one, and logged. Otherwise you must give the argument.

    Args:
        source: a .pth, .safetensors or .npz file, by its path, address or name as for ``init_model``; or the content of
            the file: a dict of weights by name, or a dict that contains this dict.
        model_args: arguments of the model that shapes do not determine, such as ``num_heads``, ``ista_step_size``,
            ``ista_lambda`` and ``img_size``. Each family lists its arguments in ``official.arguments``.
            ``part='student'`` selects the student of a DINO checkpoint that has both (default: the teacher).

    Raises:
        CheckpointError: (a ``ValueError``) the file is not a checkpoint or was written by crate_mm, its weight names
            are unknown, weights or arguments are missing, or an argument is not accepted.
    """
    if isinstance(source, (str, Path)):
        checkpoint = open_checkpoint(source, **model_args)
    else:
        arrays = {key: as_tensor(value) if isinstance(value, np.ndarray) else value for key, value in source.items()}
        checkpoint = as_checkpoint(arrays, "the given dict", **model_args)
    if checkpoint.model is not None and "translated_from" not in checkpoint.meta:
        raise CheckpointError(f"{checkpoint.path} is a checkpoint of crate_mm: load it with init_model(None, file)")
    if checkpoint.model is None:
        reason = "no family here knows the names of its weights, so its model is unknown"
        raise CheckpointError(f"{checkpoint.path}: {checkpoint.unknown_reason or reason}")
    model = build_from_checkpoint(checkpoint)
    dtypes = {value.dtype for value in checkpoint.weights.values() if value.is_floating_point()}
    if len(dtypes) == 1:
        model.to(*dtypes)
    for name, value in model.state_dict(keep_vars=True).items():
        if checkpoint.weights[name].is_floating_point():
            value.data = value.data.to(checkpoint.weights[name].dtype)
    load_strict(model, checkpoint)
    checkpoint.log_notes(lambda note: print_log(note, "current", logging.INFO))
    return model.eval()
