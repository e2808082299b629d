"""Convert the contents of a checkpoint file to a ``Checkpoint``: unwrap the weights and translate their names."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..io.untrusted import sanitized, sanitized_url
from ..models.backbone import registered_backbones
from ..models.translate import Translation, TranslationError, translate
from .validate import CheckpointError

# Keys under which third-party code stores weights (CONTAINERS) and averaged weights (AVERAGED).
CONTAINERS = ("state_dict", "model", "net", "network", "module", "model_state_dict", "model_state", "weights", "params")
AVERAGED = ("state_dict_ema", "model_ema", "ema", "ema_model", "ema_state_dict", "averaged_model")
# Keys of the models in a self-distillation checkpoint. The first key in this tuple that the file has is the default.
PARTS = ("teacher", "student")
# Name parts that torch.compile, FSDP and activation checkpointing insert at any depth.
WRAPPER_NAMES = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
LANGUAGE_KEY = "transformer.wte.weight"  # token embedding of nanoGPT and models derived from it


@dataclass
class Checkpoint:
    """Contents of a checkpoint.

    Args:
        path: the file, for messages.
        weights: state dict, with crate_mm's parameter names unless the names are of an unknown third-party model.
        model: model config of the weights, or None.
        unknown_reason: why ``model`` is None, if known.
        missing: names of the arguments that would determine ``model``, if known.
        class_names: class names of the training data, or None.
        test_transforms: configs of ``TRANSFORMS`` used for testing, or None.
        meta: other metadata.
        states: data that a resume needs besides the weights: 'optimizer', 'param_schedulers', 'message_hub', ...
        notes: messages for the log, on how the file's contents were interpreted and changed.
        gives_model: whether a config took its model from ``model``. The names in it are then untrusted data.
        parts: weights by part, for the keys of ``PARTS`` that the file has.
    """

    path: str
    weights: dict[str, Tensor]
    model: dict | None = None
    unknown_reason: str = ""
    missing: tuple[str, ...] = ()
    class_names: list[str] | None = None
    test_transforms: list[dict] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    states: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    gives_model: bool = False
    parts: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def info(self) -> dict[str, Any]:
        """Information that the run stored: its name, metrics, best epoch, ..."""
        return (self.states.get("message_hub") or {}).get("runtime_info") or {}

    @property
    def run(self) -> str | None:
        """Name of the training run, or None."""
        return self.info.get("run") or self.meta.get("run")

    def log_notes(self, log: Callable[[str], None]) -> None:
        """Log each note."""
        for note in self.notes:
            log(f"{sanitized_url(self.path)}: {sanitized(note, 1000)}")


def as_checkpoint(contents: dict, path: str | Path = "the checkpoint", **model_args: Any) -> Checkpoint:
    """Convert a file's contents, as returned by ``read_checkpoint``; for ``model_args`` see ``open_checkpoint``."""
    path = str(path)
    meta = {**contents["meta"]} if isinstance(contents.get("meta"), dict) else {}
    meta.pop("config", None)  # MMEngine would execute the config on resume
    model_args = {name: value for name, value in model_args.items() if value is not None}
    model = meta.get("model") if isinstance(meta.get("model"), dict) else None
    notes: list[str] = []
    parts: dict[str, dict[str, Tensor]] = {}
    if model:
        weights = _tensors(contents.get("state_dict"), path)
    else:
        contents_of = _unwrap_container(contents, notes, path)
        held = [name for name in PARTS if isinstance(contents_of, dict) and _holds_weights(contents_of.get(name))]
        for name in held:
            parts[name] = _strip_wrapper_names(_tensors(contents_of[name], path), notes, path)
        if held:
            weights = _choose_part(parts, model_args, notes, path)
        else:
            weights = _strip_wrapper_names(_tensors(contents_of, path), notes, path)
    checkpoint = Checkpoint(
        path,
        weights,
        model,
        class_names=(meta.get("dataset_meta") or {}).get("classes"),
        test_transforms=meta.get("test_transforms"),
        meta=meta,
        states={key: value for key, value in contents.items() if key not in ("meta", "state_dict", *parts)},
        notes=notes,
        parts=parts,
    )
    if meta.get("averaged_from"):
        notes.append(f"the weights are the average of {', '.join(meta['averaged_from'])}")
    try:
        translation = None if model else _translate(weights, model_args)
        for name, part in parts.items() if translation else ():
            parts[name] = translation.weights if part is weights else _translate(part, model_args).weights
    except TranslationError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if translation is None and model_args:
        reason = "it contains its model config" if model else "no family knows the names of its weights"
        raise CheckpointError(f"{path} does not accept {' and '.join(map(sanitized, model_args))}: {reason}")
    if translation is None:
        if not model and LANGUAGE_KEY in weights:
            checkpoint.unknown_reason = (
                f"its weights are of a language model ({LANGUAGE_KEY}), and no family here has its layers"
            )
        return checkpoint
    checkpoint.weights, checkpoint.model = translation.weights, translation.model
    checkpoint.unknown_reason, checkpoint.missing = translation.unknown_reason, translation.missing
    notes.append(f"translated from the parameter names of {translation.source}")
    if translation.unknown_reason:
        notes.append(f"the checkpoint does not determine its model, so the config must: {translation.unknown_reason}")
    if translation.unused:
        notes.append(f"weights that the model does not use: {', '.join(translation.unused)}")
    notes.append(f"assumed, because shapes do not determine it: {translation.assumed}")
    meta |= {"translated_from": translation.source, "assumed": translation.assumed}
    return checkpoint


def _choose_part(
    parts: dict[str, dict[str, Tensor]], model_args: dict[str, Any], notes: list[str], path: str
) -> dict[str, Tensor]:
    """Return the weights of the part ``model_args["part"]`` (default: the first), and remove this key."""
    part = model_args.pop("part", next(iter(parts)))
    if part not in parts:
        raise CheckpointError(f"{path} has no part {sanitized(str(part))!r}, only {' and '.join(parts)}")
    others = "".join(f"; it also has a {name} (part={name!r})" for name in parts if name != part)
    notes.append(f"the weights are the {part}'s{others}")
    return parts[part]


def _unwrap_container(contents: dict, notes: list[str], path: str) -> Any:
    """Remove the containers around the weights, and return the weights."""
    keys = []
    for _ in range(4):
        if "state_dict" in contents and not isinstance(contents["state_dict"], dict):
            return contents["state_dict"]  # ``_tensors`` reports its wrong type
        plain, averaged = (
            [key for key in names if _holds_weights(contents.get(key))] for names in (CONTAINERS, AVERAGED)
        )
        if "state_dict" in contents:
            plain = ["state_dict", *(key for key in plain if key != "state_dict")]
        elif len(plain) > 1:
            raise CheckpointError(
                f"{path} has weights under {' and '.join(plain)}: save only the weights to load, in a new file"
            )
        name = (plain or averaged or [None])[0]
        if name is None:
            break
        others = [*plain[1:], *(averaged if plain else averaged[1:])]
        if others:
            kind = "averaged weights" if others[0] in AVERAGED else "weights"
            notes.append(f"ignored {kind} under {others[0]!r}")
        if not plain:
            notes.append(f"the weights under {name!r} are averaged weights")
        keys.append(name)
        contents = contents[name]
    if keys and keys != ["state_dict"]:
        notes.append(f"the weights are under {'.'.join(keys)!r}")
    return contents


def _holds_weights(value: Any, levels: int = 3) -> bool:
    """Return whether a value is a dict with a tensor, directly or in a nested dict under one of the container keys."""
    if not isinstance(value, dict):
        return False
    inner = (value.get(key) for key in (*CONTAINERS, *AVERAGED))
    return any(isinstance(v, Tensor) for v in value.values()) or (
        levels > 0 and any(_holds_weights(v, levels - 1) for v in inner)
    )


def _tensors(state_dict: Any, path: str) -> dict[str, Tensor]:
    if not isinstance(state_dict, dict):
        raise CheckpointError(f"{path} has {type(state_dict).__name__} as its state_dict, not a dict")
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} is not a checkpoint: its {sanitized(key)} is {type(value).__name__}, not a tensor"
            )
    return {str(key): value for key, value in state_dict.items()}


def _strip_wrapper_names(state_dict: dict[str, Tensor], notes: list[str], path: str) -> dict[str, Tensor]:
    """Remove the name parts that DDP, torch.compile, FSDP and PyTorch's AveragedModel insert.

    The counter of an AveragedModel becomes a note.
    """
    weights, prefixes = {}, set()
    for key, value in state_dict.items():
        parts = key.split(".")
        inner = [part for part in parts[:-1] if part not in WRAPPER_NAMES]
        while inner and inner[0] == "module":
            inner.pop(0)
        prefixes.update(set(parts) & (WRAPPER_NAMES | {"module"}) if len(inner) < len(parts) - 1 else ())
        name = ".".join([*inner, parts[-1]])
        if name in weights:
            raise CheckpointError(
                f"{path} has some parameters twice, with and without a wrapper's prefix like 'module.'"
            )
        weights[name] = value
    if prefixes:
        notes.append(f"removed {', '.join(repr(part + '.') for part in sorted(prefixes))} from the parameter names")
        counter = weights.get("n_averaged")
        if counter is not None and counter.numel() == 1 and counter.dtype in (torch.int32, torch.int64):
            notes.append(f"the weights are the average of {int(weights.pop('n_averaged'))} models")
    return weights


def _translate(weights: dict[str, Tensor], model_args: dict[str, Any]) -> Translation | None:
    """Translate weights by the first registered family that knows their names; return None if no family does.

    Raises:
        TranslationError: a family knows the names but rejects the weights, and no other family accepts them.
    """
    first_error: ValueError | None = None
    for family in registered_backbones().values():
        try:
            translation = family.official and translate(family.official, weights, **model_args)
        except ValueError as error:  # a model that does not build raises a plain ValueError
            first_error = first_error or error
            continue
        if translation is not None:
            return translation
    if first_error:
        raise TranslationError(str(first_error))
    return None
