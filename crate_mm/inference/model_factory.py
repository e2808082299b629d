"""Build models by name, with random or pretrained weights."""

import copy
import logging
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoints import (
    Checkpoint,
    CheckpointError,
    build_from_checkpoint,
    open_checkpoint,
    validated_model_config,
)
from ..checkpoints.fit import BACKBONE, load_strict, transfer_backbone
from ..checkpoints.zoo import PUBLISHED, is_available, none_published, packaged, published_for
from ..io.log import print_log
from ..io.untrusted import sanitized
from ..models import ImageClassifier
from ..models.backbone import registered_backbones
from ..registry import BACKBONES, MODELS, head_for, registered_only, suggest


def list_models(pretrained: bool = False) -> list[str]:
    """Return the names that ``get_model`` accepts, such as 'crate_tiny', 'crate_alpha_base' and 'tost_small_12'.

    These are the named ``sizes`` of the registered backbones, CRATE's first, and the small models with weights in the
    package, such as 'crate_mini_digits'. 'crate_mae_base' is a classifier on the encoder of a masked autoencoder; a
    config builds the autoencoder itself.

    Args:
        pretrained: return only the models that ``get_model(name, pretrained=True)`` loads.
    """
    names = [*_named_backbones(), *packaged()]
    return [name for name in names if is_available(name)] if pretrained else names


def _named_backbones() -> dict[str, dict[str, str]]:
    """Return a dict from model name to the backbone's ``type`` and ``arch``."""
    families = {kind: backbone.sizes for kind, backbone in registered_backbones().items() if backbone.sizes is not None}
    return {
        f"{sizes.prefix}_{arch}": {"type": kind, "arch": arch}
        for kind, sizes in sorted(families.items(), key=lambda item: (item[1].prefix[:5] != "crate", item[1].prefix))
        for arch in sizes.archs
    }


def packaged_model(name: str) -> dict:
    """Return the model config of weights that the package contains."""
    return validated_model_config(open_checkpoint(PUBLISHED[name].file))


def get_model(
    name: str,
    num_classes: int | None = None,
    pool: str | None = None,
    pretrained: bool | str | Path | None = None,
    **backbone: Any,
) -> ImageClassifier:
    """Build a model by name in eval mode, with random or pretrained weights::

        get_model("crate_mini_digits", pretrained=True)  # weights that the package contains
        get_model("crate_alpha_base", pretrained=True)  # the weights that its authors published
        get_model("crate_tiny", num_classes=5, pretrained="hf://me/crate/model.safetensors")  # new head

    Args:
        name: one of ``list_models()``.
        num_classes: number of classes (default: the checkpoint's; without a checkpoint 1000, or 10 for a model with
            weights in the package). A number other than the checkpoint's reinitializes the head, with a message in
            the log. 0 returns features ``(B, d)``.
        pool: 'cls' or 'mean' (default: the checkpoint's, or 'cls' without a checkpoint).
        pretrained: a checkpoint as in ``init_model``, or True for the published weights of this model. The
            checkpoint sets the arguments that you omit.
        backbone: further arguments of the backbone, such as ``img_size``, ``patch_size``, ``in_channels``. A
            checkpoint's position embeddings are resized to another ``img_size``.

    Raises:
        ValueError: unknown ``name``, no published weights, or a checkpoint that cannot be loaded or does not match.
    """
    if name not in list_models():
        raise ValueError(f"unknown model {name!r}: {suggest(name, list_models())}")
    model = packaged_model(name) if name in packaged() else None
    named = model["backbone"] if model else _named_backbones()[name]
    checkpoint = None if pretrained is None or pretrained is False else _open_pretrained(name, pretrained)
    if checkpoint and checkpoint.model:
        model = _matching_config(name, named, checkpoint) or model
    if model is None:
        channels = backbone.get("in_channels", 3)
        model = {
            "type": "ImageClassifier",
            "backbone": named,
            "head": {"type": "LinearHead", "num_classes": 1000, "pool": "cls", **head_for(named["type"])},
            "preprocessor": {} if channels == 3 else {"mean": (0.5,) * channels, "std": (0.5,) * channels},
        }
    config = copy.deepcopy(model)
    config["backbone"].update(backbone)
    config["head"] |= {} if num_classes is None else {"num_classes": num_classes}
    config["head"] |= {} if pool is None else {"pool": pool}
    with registered_only():
        classifier = MODELS.build(copy.deepcopy(config))
    if checkpoint is not None:
        same_task = checkpoint.model is None or checkpoint.model["type"] == "ImageClassifier"
        _load_pretrained(classifier, checkpoint, load_all=same_task and config == model)
    return classifier.eval()


def load_model(checkpoint: str | Path) -> nn.Module:
    """Build a checkpoint's own model in eval mode and load its weights.

    Raises:
        CheckpointError: the checkpoint cannot be opened, or does not define its model.
    """
    loaded = open_checkpoint(checkpoint)
    model = build_from_checkpoint(loaded)
    finish_loading(model, loaded)
    return model.eval()


def finish_loading(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's weights, log its notes, and copy its class names and test transforms."""
    load_strict(model, checkpoint)
    checkpoint.log_notes(lambda note: print_log(note, "current", logging.INFO))
    copy_metadata(model, checkpoint)


def copy_metadata(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy class names and test transforms from a checkpoint to a model."""
    model.class_names = checkpoint.class_names
    model.test_transforms = checkpoint.test_transforms
    model.described_by = checkpoint.path


def _open_pretrained(name: str, pretrained: bool | str | Path) -> Checkpoint:
    call = f"get_model({name!r}, pretrained={pretrained if pretrained is True else str(pretrained)!r})"
    source = published_for(name) if pretrained is True else pretrained
    if source is None:
        raise ValueError(
            f"{call}: {none_published(name)}; pretrained= also accepts a checkpoint: a path, https://host/file "
            "or hf://owner/repo/file"
        )
    try:
        return open_checkpoint(source)
    except CheckpointError as error:
        raise CheckpointError(f"{call}: {error}") from None


def _matching_config(name: str, named: dict, checkpoint: Checkpoint) -> dict | None:
    """Return a checkpoint's model config if it is a classifier's. If None, only the backbone can be loaded.

    Raises:
        CheckpointError: the type or the size of the checkpoint's backbone differs from the named one.
    """
    model = validated_model_config(checkpoint)
    backbone = model.get("backbone") or {}
    if backbone.get("type") != named["type"] or _size(backbone) != _size(named):
        raise CheckpointError(
            f"get_model({name!r}): {checkpoint.path} is of another model, with the backbone "
            f"{sanitized(backbone.get('type'))} of arch {sanitized(backbone.get('arch'))}: build that model with "
            "init_model(None, ...)"
        )
    return model if model["type"] == "ImageClassifier" else None


def _size(backbone: dict) -> tuple | None:
    """Return the size that a backbone's config names or defines by its ``arch``."""
    archs, arch = BACKBONES.get(backbone["type"]).sizes.archs, backbone.get("arch")
    if not isinstance(arch, dict):
        return archs.get(arch)
    return tuple(arch.get(key) for key in next(iter(archs.values()))._fields)


def _load_pretrained(model: ImageClassifier, checkpoint: Checkpoint, load_all: bool) -> None:
    """Load all of a checkpoint's weights, or its whole backbone and, if all shapes of the head match, its head.

    Raises:
        CheckpointError: the weights do not match the model.
    """
    checkpoint.log_notes(lambda note: print_log(note, "current", logging.INFO))
    if load_all:
        load_strict(model, checkpoint)
        copy_metadata(model, checkpoint)
        return
    report = transfer_backbone(model, checkpoint)
    unmatched = [name for name in (*report.new, *report.dropped) if name.startswith(BACKBONE)]
    if unmatched:
        raise CheckpointError(f"{checkpoint.path} does not fit the model: they differ in {sanitized(unmatched[0])}")
    head_state = model.head.state_dict()
    checkpoint_head = {name: checkpoint.weights.get(f"head.{name}") for name in head_state}
    if all(value is not None and value.shape == head_state[name].shape for name, value in checkpoint_head.items()):
        model.head.load_state_dict(checkpoint_head)
        if model.num_classes:
            model.class_names = checkpoint.class_names
        for name in checkpoint_head:
            report.loaded[f"head.{name}"] = report.dropped.pop(f"head.{name}")
            del report.new[f"head.{name}"]
    else:
        print_log(f"{sanitized(checkpoint.path)} has no weights for the new head: train it", "current", logging.WARNING)
    print_log(f"{sanitized(checkpoint.path)}:\n{report.table()}", "current", logging.INFO)
