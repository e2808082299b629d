"""Check and apply ``--cfg-options``: each key must name a setting, or an argument of an object in the config."""

import copy
import inspect
from types import NoneType
from typing import Any

import torch
from mmengine import registry as mmengine_registry
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, LogProcessor, Runner, TestLoop, ValLoop
from torch.utils.data import DataLoader

from .. import registry
from ..registry import suggest
from .kinds import RawText, accepted_types, read, signatures
from .settings import DERIVED, GUARDS, LOADERS, PARAMWISE_KEYS, SETTINGS, VALUE_TYPES

# Functions that receive the config's dicts without a ``type``.
_UNTYPED = {
    "": Runner.__init__,
    "randomness": Runner.set_randomness,
    "optim_wrapper": OptimWrapper.__init__,
    "train_cfg": EpochBasedTrainLoop.__init__,
    "val_cfg": ValLoop.__init__,
    "test_cfg": TestLoop.__init__,
    "log_processor": LogProcessor.__init__,
    "optim_wrapper.clip_grad": torch.nn.utils.clip_grad_norm_,
    **dict.fromkeys(LOADERS, DataLoader.__init__),
}
_EXTRA = {
    "": [
        *("custom_imports", "model_wrapper_cfg", "compile", "efficient_conv_bn_eval"),
        *(row.name for row in SETTINGS if "." not in row.name),
    ],
    "guards": list(GUARDS),
    "env_cfg": ["mp_cfg", "dist_cfg", "resource_limit"],
    "optim_wrapper.clip_grad": ["type", "max_norm", "clip_value"],
    "optim_wrapper.paramwise_cfg": list(PARAMWISE_KEYS),
    "optim_wrapper": [
        *("type", "constructor", "paramwise_cfg", "dtype", "loss_scale"),
        *("max_skipped_steps", "decide_on_device"),
    ],
    "train_cfg": ["max_steps"],
    "param_scheduler": ["convert_to_iter_based", "by_epoch", "begin", "end"],
    **{name: ["dataset", "num_batch_per_epoch"] for name in LOADERS},
}


def apply_overrides(cfg: Config, overrides: dict[str, Any]) -> None:
    """Set the keys of a config in place and create missing parent dicts; a dict replaces the previous value."""
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
    """Return the overrides, with command-line text parsed by the type of its setting.

    Raises:
        ValueError: an override names an unknown setting (MMEngine would add the misspelled key and ignore it), or its
            value has the wrong type.
    """
    root, values = copy.deepcopy(cfg._cfg_dict), {}
    # Apply types first, so that the settings of the new type are known.
    for key, value in sorted(overrides.items(), key=lambda item: not item[0].endswith(".type")):
        if key in DERIVED:
            raise ValueError(f"--cfg-options {key} cannot be set: it is derived from {DERIVED[key]}")
        target, value_types = _declared(key, root)
        value = values[key] = _read(key, value, target, value_types)
        node, parent, walked = root, None, []
        for part in key.split("."):
            where = ".".join(walked)
            if isinstance(node, (list, tuple)):
                if not part.isdigit() or int(part) >= len(node):
                    raise ValueError(f"--cfg-options {key}: {where} is a list of {len(node)} and has no entry {part!r}")
                node = node[int(part)]
            elif not walked and part not in _settings({}, ""):
                _raise_unknown(key, part, part in node)
            elif isinstance(node, dict) and part in node:
                node, parent = node[part], node
            elif where == "default_hooks" and isinstance(value, dict) and "type" in value:
                node = None  # an additional hook, whose type is resolved when it is built
            elif isinstance(node, dict):
                known = _settings(node, where)
                if known is None or part in known:
                    # The config leaves this setting at its default. Keys below it are checked only if in ``_EXTRA``.
                    node = {} if ".".join([*walked, part]) in _EXTRA else None
                    walked.append(part)
                    continue
                raise ValueError(
                    f"--cfg-options {key}: {where or 'the config'} has no {part!r}: {suggest(part, known)}"
                )
            elif node is not None:
                raise ValueError(f"--cfg-options {key}: {where} is {node!r} and has no {part!r}")
            else:
                break
            walked.append(part)
        if key.endswith(".type") and parent is not None:
            parent["type"] = value
        if (
            isinstance(node, dict)
            and not isinstance(value, (dict, list, tuple, NoneType))  # several evaluators are a list of dicts
            and type(value) not in (value_types or ())
        ):
            raise ValueError(
                f"--cfg-options {key}: expected a dict, or one of its keys as {key}.KEY=..., got {value!r}"
            )
        if isinstance(node, (int, float)) and isinstance(value, str) and str not in (value_types or ()):
            raise ValueError(f"--cfg-options {key}: expected {type(node).__name__} such as {node}, got {value!r}")
    return {key: values[key] for key in overrides}


def _declared(key: str, root: dict) -> tuple[Any, set[Any] | None]:
    """Return the class or function that receives a setting, and the types of the setting; None where unknown."""
    *parents, last = key.split(".")
    holder: Any = root
    for part in parents:
        if isinstance(holder, (list, tuple)):
            holder = holder[int(part)] if part.isdigit() and int(part) < len(holder) else None
        else:
            holder = holder.get(part) if isinstance(holder, dict) else None
    target = _UNTYPED.get(".".join(parents))
    if isinstance(holder, dict) and "type" in holder:
        target = _registered(holder["type"])
    return target, {str} if last == "type" else VALUE_TYPES.get(key) or accepted_types(target, last)


def _read(key: str, value: Any, target: Any, value_types: set[Any] | None) -> Any:
    """Return a value, parsed by the types of its setting if it is command-line text."""
    if not isinstance(value, RawText):
        return value
    try:
        # Not strict for third-party code: its annotations may be incomplete.
        return read(value, value_types, strict=getattr(target, "__module__", "").startswith("crate_mm."))
    except ValueError as error:
        raise ValueError(f"--cfg-options {key}: {error}") from None


def _raise_unknown(key: str, name: str, is_variable: bool) -> None:
    known = _settings({}, "")
    if is_variable:
        raise ValueError(
            f"--cfg-options {key}: {name} is a variable of the config's file, used only while the file is read: "
            "override the settings that are computed from it"
        )
    raise ValueError(f"--cfg-options {key}: the config has no {name!r}: {suggest(name, known)}")


def _settings(node: dict, where: str) -> list[str] | None:
    """Return the keys that a config dict may have, or None if they are unknown."""
    known = set(node) | set(_EXTRA.get(where, ()))
    target = _UNTYPED.get(where)
    if "type" in node:
        target = _registered(node["type"])
    if target is None:
        return None if "type" in node else sorted(known)
    for receiver in signatures(target):
        parameters = inspect.signature(receiver).parameters.values()
        known.update(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return sorted(known - {"self"})


def _registered(name) -> type | None:
    """Return the class that a ``type`` names, from any registry."""
    if not isinstance(name, str):
        return name
    for candidate in vars(registry).values():
        if isinstance(candidate, mmengine_registry.Registry) and name in candidate.names():
            return candidate.get(name)
    return None
