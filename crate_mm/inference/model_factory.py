"""Models by name, with new weights or with those of a checkpoint."""

import copy
import logging
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoints import Checkpoint, CheckpointError, open_checkpoint, validated_model_config
from ..checkpoints.fit import BACKBONE, load_strict, transfer_backbone
from ..checkpoints.zoo import none_published, published_for
from ..io.log import print_log
from ..io.untrusted import sanitized
from ..models import ImageClassifier
from ..models.backbone import registered_backbones
from ..registry import BACKBONES, MODELS, head_for, registered_only, suggest


def list_models() -> list[str]:
    """Names that ``get_model`` takes: 'crate_tiny', ..., 'crate_alpha_base', ..., 'tost_small_12', ..., 'vit_small'.

    They are those of the registered backbones that say their ``sizes``. 'crate_mae_base' is a classifier on the encoder
    of a masked autoencoder; the autoencoder itself is a config.
    """
    return list(_named_models())


def _named_models() -> dict[str, tuple[str, str]]:
    """Of each name its backbone and its arch, as the registered backbones say them."""
    families = {kind: backbone.sizes for kind, backbone in registered_backbones().items() if backbone.sizes is not None}
    return {
        f"{sizes.prefix}_{arch}": (kind, arch)
        for kind, sizes in sorted(families.items(), key=lambda item: item[1].prefix)
        for arch in sizes.archs
    }


def get_model(
    name: str,
    num_classes: int | None = None,
    pool: str | None = None,
    pretrained: bool | str | Path | None = None,
    **backbone: Any,
) -> ImageClassifier:
    """Build a model by name, in eval mode, with new weights or with those of a checkpoint::

        get_model("crate_alpha_base", pretrained=True)  # the weights that the authors published of it
        get_model("crate_tiny", num_classes=5, pretrained="hf://me/crate/model.safetensors")  # and a new head

    Args:
        name: one of ``list_models()``.
        num_classes: number of classes; the checkpoint's if not given, and 1000 without a checkpoint. With another
            number than the checkpoint's the head starts anew, which the log says. 0 for a model that gives features
            ``(B, d)``.
        pool: 'cls' or 'mean'; the checkpoint's if not given, and 'cls' without one.
        pretrained: a checkpoint, as ``init_model`` takes it; True for the published weights of this model. What the
            checkpoint says of its model holds where nothing else is given here.
        backbone: further arguments of the backbone, such as ``img_size``, ``patch_size``, ``in_channels``. Position
            embeddings of a checkpoint are resized to another ``img_size``.

    Raises:
        ValueError: unknown ``name``, no published weights of it, or a checkpoint that cannot be had or is of another
            model.
    """
    models = _named_models()
    if name not in models:
        raise ValueError(f"unknown model {name!r}: {suggest(name, list(models))}")
    kind, arch = models[name]
    opened = None if pretrained is None or pretrained is False else _open_pretrained(name, pretrained)
    model = _matching_config(name, kind, arch, opened) if opened and opened.model else None
    if model is None:
        channels = backbone.get("in_channels", 3)
        model = {
            "type": "ImageClassifier",
            "backbone": {"type": kind, "arch": arch},
            "head": {"type": "LinearHead", "num_classes": 1000, "pool": "cls", **head_for(kind)},
            "preprocessor": {} if channels == 3 else {"mean": (0.5,) * channels, "std": (0.5,) * channels},
        }
    wanted = copy.deepcopy(model)
    wanted["backbone"].update(backbone)
    wanted["head"] |= {} if num_classes is None else {"num_classes": num_classes}
    wanted["head"] |= {} if pool is None else {"pool": pool}
    with registered_only():
        built = MODELS.build(copy.deepcopy(wanted))
    if opened is not None:
        same = opened.model is None or opened.model["type"] == "ImageClassifier"
        _load_pretrained(built, opened, whole=same and wanted == model)
    return built.eval()


def note_metadata(model: nn.Module, opened: Checkpoint) -> None:
    """Note on a model what a checkpoint says of its use: class names, and the transforms of its test."""
    model.class_names = opened.class_names
    model.test_transforms = opened.test_transforms
    model.described_by = opened.path


def _open_pretrained(name: str, pretrained: bool | str | Path) -> Checkpoint:
    call = f"get_model({name!r}, pretrained={pretrained if pretrained is True else str(pretrained)!r})"
    source = published_for(name) if pretrained is True else pretrained
    if source is None:
        raise ValueError(
            f"{call}: {none_published(name)}; pretrained= takes a checkpoint too: a path, https://host/file or "
            "hf://owner/repo/file"
        )
    try:
        return open_checkpoint(source)
    except CheckpointError as error:
        raise CheckpointError(f"{call}: {error}") from None


def _matching_config(name: str, kind: str, arch: str, opened: Checkpoint) -> dict | None:
    """The classifier that a checkpoint describes; None for another task, whose backbone is taken over.

    Raises:
        CheckpointError: it is of another model than is named.
    """
    model = validated_model_config(opened)
    backbone = model.get("backbone") or {}
    sizes = BACKBONES.get(kind).sizes.archs
    size = backbone.get("arch")
    size = sizes.get(size) if isinstance(size, str) else size and tuple(size.get(key) for key in sizes[arch]._fields)
    if backbone.get("type") != kind or size != sizes[arch]:
        raise CheckpointError(
            f"get_model({name!r}): {opened.path} is of another model, of backbone {sanitized(backbone.get('type'))}, "
            f"{sanitized(backbone.get('arch'))}: init_model(None, ...) builds what it describes"
        )
    return model if model["type"] == "ImageClassifier" else None


def _load_pretrained(model: ImageClassifier, opened: Checkpoint, whole: bool) -> None:
    """Put a checkpoint's weights into a model: all, or the backbone's whole and the head's where it is the same.

    Raises:
        CheckpointError: they do not fit the model.
    """
    opened.log_notes(lambda note: print_log(note, "current", logging.INFO))
    if whole:
        load_strict(model, opened)
        note_metadata(model, opened)
        return
    table = transfer_backbone(model, opened)
    unlike = [name for name in (*table.new, *table.dropped) if name.startswith(BACKBONE)]
    if unlike:
        raise CheckpointError(f"{opened.path} does not fit the model: {sanitized(unlike[0])} is not the same in both")
    ours = model.head.state_dict()
    theirs = {name: opened.weights.get(f"head.{name}") for name in ours}
    if all(value is not None and value.shape == ours[name].shape for name, value in theirs.items()):
        model.head.load_state_dict(theirs)
        if model.num_classes:
            model.class_names = opened.class_names
        for name in theirs:
            table.loaded[f"head.{name}"] = table.dropped.pop(f"head.{name}")
            del table.new[f"head.{name}"]
    else:
        print_log(
            f"the head is new, and {sanitized(opened.path)} has none for it: train it", "current", logging.WARNING
        )
    print_log(f"{sanitized(opened.path)}:\n{table.table()}", "current", logging.INFO)
