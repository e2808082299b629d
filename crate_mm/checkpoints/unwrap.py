"""The contents of a checkpoint's file as a value: unwrapped, and under our names."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..io.untrusted import sanitized, shown_address
from .translate import TranslationError, translate_by_family
from .validate import CheckpointError

# Where other code bases keep the weights: under one of these names, and averaged ones under one of the others.
CONTAINERS = ("state_dict", "model", "net", "network", "module", "model_state_dict", "model_state", "weights", "params")
AVERAGED = ("state_dict_ema", "model_ema", "ema", "ema_model", "ema_state_dict", "averaged_model")
# Parts of names that wrappers put in: torch.compile's anywhere, FSDP's and activation checkpointing's too.
WRAPPED = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
LANGUAGE = "transformer.wte.weight"  # the token embedding in nanoGPT's models, and in those of the family made from it


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    Args:
        path: the file, for messages.
        weights: by name, as our models name them where the file is ours or a family knows its names.
        model: the config of the model that the weights are of, or None.
        unknown: why ``model`` is None, where that is known.
        class_names: of the data that the model was trained on, or None.
        test_transforms: configs of ``TRANSFORMS`` that the model was tested with, or None.
        meta: what else it says of itself.
        states: what a resume needs beside the weights: 'optimizer', 'param_schedulers', 'message_hub', ...
        notes: what was done to the file's contents, in sentences.
        gives_model: whether a config that names no model has taken this one, which is data of the file.
    """

    path: str
    weights: dict[str, Tensor]
    model: dict | None = None
    unknown: str = ""
    class_names: list[str] | None = None
    test_transforms: list[dict] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    states: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    gives_model: bool = False

    @property
    def info(self) -> dict[str, Any]:
        """What the run kept about itself: its name, figures, best epoch, ..."""
        return (self.states.get("message_hub") or {}).get("runtime_info") or {}

    @property
    def run(self) -> str | None:
        """The name of the run of training that it is from, or None."""
        return self.info.get("run") or self.meta.get("run")

    def say(self, say: Callable[[str], None]) -> None:
        """Hand each note to a log."""
        for note in self.notes:
            say(f"{shown_address(self.path)}: {sanitized(note, 1000)}")


def as_checkpoint(contents: dict, path: str | Path = "the checkpoint", **given: Any) -> Checkpoint:
    """Return the contents of a file, as ``read_checkpoint`` returns them, as a ``Checkpoint``: see
    ``open_checkpoint``."""
    path = str(path)
    meta = {**contents["meta"]} if isinstance(contents.get("meta"), dict) else {}
    meta.pop("config", None)  # MMEngine's resume would run it
    given = {name: value for name, value in given.items() if value is not None}
    described = meta.get("model") if isinstance(meta.get("model"), dict) else None
    notes: list[str] = []
    if described:
        weights = _tensors(contents.get("state_dict"), path)
    else:
        weights = _without_wrappers(_tensors(_inside_container(contents, notes, path), path), notes, path)
    checkpoint = Checkpoint(
        path,
        weights,
        described,
        class_names=(meta.get("dataset_meta") or {}).get("classes"),
        test_transforms=meta.get("test_transforms"),
        meta=meta,
        states={key: value for key, value in contents.items() if key not in ("meta", "state_dict")},
        notes=notes,
    )
    if meta.get("averaged_from"):
        notes.append(f"it is the average of {', '.join(meta['averaged_from'])}")
    try:
        translation = None if described else translate_by_family(weights, given)
    except TranslationError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if translation is None and given:
        why = "it says itself what model it is of" if described else "no family knows the names of its weights"
        raise CheckpointError(f"{path} takes no {' and no '.join(map(sanitized, given))}: {why}")
    if translation is None:
        if not described and LANGUAGE in weights:
            checkpoint.unknown = f"its weights are a language model's ({LANGUAGE}), for which there is no family here"
        return checkpoint
    checkpoint.weights, checkpoint.model = translation.weights, translation.model
    checkpoint.unknown = translation.unknown
    notes.append(f"it has the names of {translation.source}, which are translated")
    if translation.unknown:
        notes.append(f"it does not tell its model, the config does: {translation.unknown}")
    if translation.unused:
        notes.append(f"weights that the model does not use: {', '.join(translation.unused)}")
    notes.append(f"assumed, as shapes do not tell it: {translation.assumed}")
    meta |= {"translated_from": translation.source, "assumed": translation.assumed}
    return checkpoint


def _inside_container(contents: dict, notes: list[str], path: str) -> Any:
    """The weights in whatever the file has them in."""
    where = []
    for _ in range(4):
        if "state_dict" in contents and not isinstance(contents["state_dict"], dict):
            return contents["state_dict"]  # of a wrong kind, which is said where it is looked at
        plain, averaged = (
            [key for key in names if _holds_weights(contents.get(key))] for names in (CONTAINERS, AVERAGED)
        )
        if "state_dict" in contents:
            plain = ["state_dict", *(key for key in plain if key != "state_dict")]
        elif len(plain) > 1:
            raise CheckpointError(
                f"{path} holds weights under {' and '.join(plain)}, and does not say which are wanted: save those by "
                "themselves"
            )
        name = (plain or averaged or [None])[0]
        if name is None:
            break
        others = [*plain[1:], *(averaged if plain else averaged[1:])]
        if others:
            kind = "averaged weights" if others[0] in AVERAGED else "weights"
            notes.append(f"it also holds {kind}, under {others[0]!r}, which are not taken")
        if not plain:
            notes.append(f"its weights, under {name!r}, are averaged ones")
        where.append(name)
        contents = contents[name]
    if where and where != ["state_dict"]:
        notes.append(f"the weights are under {'.'.join(where)!r}")
    return contents


def _holds_weights(value: Any, levels: int = 3) -> bool:
    """Whether a file's entry is a dict of tensors, or holds one under a usual name."""
    if not isinstance(value, dict):
        return False
    inner = (value.get(key) for key in (*CONTAINERS, *AVERAGED))
    return any(isinstance(v, Tensor) for v in value.values()) or (
        levels > 0 and any(_holds_weights(v, levels - 1) for v in inner)
    )


def _tensors(stored: Any, path: str) -> dict[str, Tensor]:
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path} holds {type(stored).__name__} as its state_dict, not a dict")
    for key, value in stored.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} is no checkpoint: its {sanitized(key)} is {type(value).__name__}, not a tensor"
            )
    return {str(key): value for key, value in stored.items()}


def _without_wrappers(stored: dict[str, Tensor], notes: list[str], path: str) -> dict[str, Tensor]:
    """Names without what DDP, torch.compile, FSDP and PyTorch's AveragedModel put in."""
    weights, taken = {}, set()
    for key, value in stored.items():
        parts = key.split(".")
        kept = [part for part in parts[:-1] if part not in WRAPPED]
        while kept and kept[0] == "module":
            kept.pop(0)
        taken.update(set(parts) & (WRAPPED | {"module"}) if len(kept) < len(parts) - 1 else ())
        name = ".".join([*kept, parts[-1]])
        if name in weights:
            raise CheckpointError(f"{path} holds some parameters twice, with and without 'module.' or the like")
        weights[name] = value
    if taken:
        notes.append(f"{', '.join(repr(part + '.') for part in sorted(taken))} is taken from the names")
        counter = weights.get("n_averaged")
        if counter is not None and counter.numel() == 1 and counter.dtype in (torch.int32, torch.int64):
            notes.append(f"its weights are the average of {int(weights.pop('n_averaged'))} models")
    return weights
