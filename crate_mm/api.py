"""What a user imports: models by name or by config, and prediction on images."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import nn

from .checkpoints import CheckpointError, as_checkpoint, build_from_checkpoint, open_checkpoint
from .checkpoints.fit import load_strict
from .checkpoints.readers.npz import as_tensor
from .inference.model_factory import get_model, list_models, note_metadata  # noqa: F401  what a user imports
from .inference.predictor import Predictor, default_class_names  # noqa: F401  what a user imports
from .inference.standalone import build_model, load_config_for
from .io.log import print_log


def init_model(
    config: str | Path | Config | None, checkpoint: str | Path | None = None, device: str | torch.device = "cpu"
) -> nn.Module:
    """Build a config's model in eval mode, with the weights of a checkpoint if one is given.

    Args:
        config: a config, its file, or the name of one that comes with the package ('crate_base_in1k'). None takes the
            model from what the checkpoint says of itself, which is data: it names parts that are registered here, and
            can import or run nothing.
        checkpoint: a checkpoint of this package or of the official code: a path, https://host/file,
            hf://owner/repo/file with '@revision' behind it for another than the main branch, or the name of published
            weights ('crate_alpha_base_in1k').
        device: where the model goes.

    Raises:
        ValueError: no such config or checkpoint, or one that does not fit the other.
    """
    if config is None:
        if checkpoint is None:
            raise ValueError("neither a config nor a checkpoint is given: one of them must say what the model is")
        cfg, opened = {}, open_checkpoint(checkpoint)
        model = build_from_checkpoint(opened)
    else:
        cfg, opened = load_config_for(config, checkpoint, whole=True)
        model = build_model(cfg, opened)
    if opened is not None:
        load_strict(model, opened)
        opened.log_notes(lambda note: print_log(note, "current", logging.INFO))
        note_metadata(model, opened)
    test = (cfg.get("test_dataloader") or {}).get("dataset") or {}
    if "transforms" in test:
        model.test_transforms, model.described_by = test["transforms"], None
    return model.to(device).eval()


def from_official(source: str | Path | Mapping[str, Any], **given: Any) -> nn.Module:
    """A model with another code base's weights, in their kind of number and in eval mode::

        from_official("crate_alpha_B16.pth")
        from_official("crate-demo.pth", num_heads=6)

    The families that know the names of the weights say what model they are of. What shapes do not tell and only one
    published model answers is taken as published, which the log says; whatever else they leave open must be given.

    Args:
        source: a .pth, .safetensors or .npz file, by its path, address or name as for ``init_model``, or what such a
            file holds: weights by name, or a dict with them.
        given: arguments of the model that shapes do not tell, such as ``num_heads``, ``ista_step_size``,
            ``ista_lambda`` and ``img_size``; what a family takes, its ``official.arguments`` lists.

    Raises:
        CheckpointError: (a ``ValueError``) the file is no checkpoint or one of ours, no family knows its names, its
            weights are not whole, or something is not given, which the message names, or given and not taken.
    """
    if isinstance(source, (str, Path)):
        opened = open_checkpoint(source, **given)
    else:
        arrays = {key: as_tensor(value) if isinstance(value, np.ndarray) else value for key, value in source.items()}
        opened = as_checkpoint(arrays, "what is given", **given)
    if opened.model is not None and "translated_from" not in opened.meta:
        raise CheckpointError(f"{opened.path} is a checkpoint of crate_mm: init_model(None, file) takes it")
    if opened.model is None:
        known = "no family here knows the names of its weights, so that it is not known what model they are of"
        raise CheckpointError(f"{opened.path}: {opened.unknown_reason or known}")
    model = build_from_checkpoint(opened)
    kinds = {value.dtype for value in opened.weights.values() if value.is_floating_point()}
    if len(kinds) == 1:
        model.to(*kinds)
    for name, value in model.state_dict(keep_vars=True).items():
        if opened.weights[name].is_floating_point():
            value.data = value.data.to(opened.weights[name].dtype)
    load_strict(model, opened)
    opened.log_notes(lambda note: print_log(note, "current", logging.INFO))
    return model.eval()
