"""``--cfg-options``: every key must name a setting, of the config or of what the config configures."""

import copy
import inspect
from typing import Any

import torch
from mmengine import registry as mmengine_registry
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, LogProcessor, Runner, TestLoop, ValLoop
from torch.utils.data import DataLoader

from .. import registry
from ..registry import suggest
from .kinds import Given, accepted_types, read, signatures
from .settings import DERIVED, GUARDS, KINDS, SETTINGS

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")

# What a dict without a ``type`` is passed to.
_UNTYPED = {
    "": Runner.__init__,
    "randomness": Runner.set_randomness,
    "optim_wrapper": OptimWrapper.__init__,
    "train_cfg": EpochBasedTrainLoop.__init__,
    "val_cfg": ValLoop.__init__,
    "test_cfg": TestLoop.__init__,
    "log_processor": LogProcessor.__init__,
    "optim_wrapper.clip_grad": torch.nn.utils.clip_grad_norm_,
    **dict.fromkeys(_LOADERS, DataLoader.__init__),
}
_EXTRA = {
    "": [
        "custom_imports",
        "model_wrapper_cfg",
        "compile",
        "efficient_conv_bn_eval",
        *(row.name for row in SETTINGS if "." not in row.name),
    ],
    "guards": list(GUARDS),
    "env_cfg": ["mp_cfg", "dist_cfg", "resource_limit"],
    "optim_wrapper.clip_grad": ["type", "max_norm", "clip_value"],
    "optim_wrapper.paramwise_cfg": [
        *("lr_mult", "decay_mult", "norm_decay_mult", "bias_lr_mult", "bias_decay_mult", "flat_decay_mult"),
        *("dwconv_decay_mult", "dcn_offset_lr_mult", "bypass_duplicate", "custom_keys", "layer_decay"),
    ],
    "optim_wrapper": [
        "type",
        "constructor",
        "paramwise_cfg",
        "dtype",
        "loss_scale",
        "max_skipped_steps",
        "decide_on_device",
    ],
    "train_cfg": ["max_steps"],
    "param_scheduler": ["convert_to_iter_based", "by_epoch", "begin", "end"],
    **{name: ["dataset", "num_batch_per_epoch"] for name in _LOADERS},
}


def apply_overrides(cfg: Config, overrides: dict[str, Any]) -> None:
    """Set the keys of a config, making the dicts on the way that are not there. A dict takes the place of what was."""
    for key, value in overrides.items():
        *path, last = key.split(".")
        node = cfg._cfg_dict
        for part in path:
            child = node[int(part)] if isinstance(node, list) else node.get(part)
            if child is None or isinstance(child, tuple):
                child = ConfigDict() if child is None else list(child)
                node[int(part) if isinstance(node, list) else part] = child
                child = node[int(part) if isinstance(node, list) else part]
            node = child
        node[int(last) if isinstance(node, list) else last] = ConfigDict(value) if isinstance(value, dict) else value


def check_overrides(cfg: Config, overrides: dict) -> dict:
    """Return the overrides, with what is still the text of a command line read as what each setting is.

    Raises:
        ValueError: an override names a setting that neither the config nor what it configures has (MMEngine would
            create the misspelt key and train on without it), or has a value of another kind.
    """
    root, values = copy.deepcopy(cfg._cfg_dict), {}
    # A changed type comes first: the settings of the new one are then known.
    for key, value in sorted(overrides.items(), key=lambda item: not item[0].endswith(".type")):
        if key in DERIVED:
            raise ValueError(f"--cfg-options {key} cannot be set: it follows from {DERIVED[key]}")
        value = values[key] = _read(key, value, root)
        node, parent, walked = root, None, []
        for part in key.split("."):
            where = ".".join(walked)
            if isinstance(node, (list, tuple)):
                if not part.isdigit() or int(part) >= len(node):
                    raise ValueError(f"--cfg-options {key}: {where} is a list of {len(node)}, it has no entry {part!r}")
                node = node[int(part)]
            elif not walked and part not in _settings({}, ""):
                _refuse_variable(key, part, part in node)
            elif isinstance(node, dict) and part in node:
                node, parent = node[part], node
            elif where == "default_hooks" and isinstance(value, dict) and "type" in value:
                node = None  # a further hook, whose type is looked up when it is built
            elif isinstance(node, dict):
                known = _settings(node, where)
                if known is None or part in known:
                    # A setting that the config leaves at its default; what is below it is known or free form.
                    node = {} if ".".join([*walked, part]) in _EXTRA else None
                    walked.append(part)
                    continue
                raise ValueError(
                    f"--cfg-options {key}: {where or 'the config'} has no {part!r}: {suggest(part, known)}"
                )
            elif node is not None:
                raise ValueError(f"--cfg-options {key}: {where} is {node!r}, it has no {part!r}")
            else:
                break
            walked.append(part)
        if key.endswith(".type") and parent is not None:
            parent["type"] = value
        if isinstance(node, (int, float)) and isinstance(value, str):
            raise ValueError(f"--cfg-options {key}: a {type(node).__name__} is wanted, as {node}; got {value!r}")
    return {key: values[key] for key in overrides}


def _read(key: str, value: Any, root: dict) -> Any:
    """A value, read as what its setting is if it is still text."""
    if not isinstance(value, Given):
        return value
    *above, last = key.split(".")
    holder: Any = root
    for part in above:
        if isinstance(holder, (list, tuple)):
            holder = holder[int(part)] if part.isdigit() and int(part) < len(holder) else None
        else:
            holder = holder.get(part) if isinstance(holder, dict) else None
    target = _UNTYPED.get(".".join(above))
    if isinstance(holder, dict) and "type" in holder:
        target = _registered(holder["type"])
    kinds = {str} if last == "type" else KINDS.get(key) or accepted_types(target, last)
    try:
        # Others' annotations may leave out what they take.
        return read(value, kinds, strict=getattr(target, "__module__", "").startswith("crate_mm."))
    except ValueError as error:
        raise ValueError(f"--cfg-options {key}: {error}") from None


def _refuse_variable(key: str, name: str, is_there: bool) -> None:
    known = _settings({}, "")
    if is_there:
        raise ValueError(
            f"--cfg-options {key}: {name} is a variable of the config's file, which is used up when the file is read: "
            "override the settings that are made from it"
        )
    raise ValueError(f"--cfg-options {key}: the config has no {name!r}: {suggest(name, known)}")


def _settings(node: dict, where: str) -> list[str] | None:
    """The names that a config dict may have, or None where they cannot be told."""
    known = set(node) | set(_EXTRA.get(where, ()))
    target = _UNTYPED.get(where)
    if "type" in node:
        target = _registered(node["type"])
    if target is None:
        return None if "type" in node else sorted(known)
    for taking in signatures(target):
        parameters = inspect.signature(taking).parameters.values()
        known.update(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return sorted(known - {"self"})


def _registered(name) -> type | None:
    """The class that a ``type`` names, in whichever registry it is."""
    if not isinstance(name, str):
        return name
    for candidate in vars(registry).values():
        if isinstance(candidate, mmengine_registry.Registry) and name in candidate.names():
            return candidate.get(name)
    return None
