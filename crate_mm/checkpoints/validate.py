"""Check the types of a checkpoint's metadata and states once, when the file is opened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..io.untrusted import check_plain, sanitized, walk, without_secrets

# Version of the parameter names and metadata, stored as ``meta.format``. Old files have no version: their names are the
# same, or are names of an earlier crate_mm.
FORMAT = 1

# Advice for a third-party file that torch.load accepts.
ADVICE = "save only its weights, as {name: tensor.clone()}"


class CheckpointError(ValueError):
    """A file is not a checkpoint, or is for another model. The message is always a single line."""

    def __init__(self, message: str) -> None:
        super().__init__(sanitized(without_secrets(message), 2000))


class DamagedError(CheckpointError):
    """A file is truncated, or its content has changed since it was written."""


def first_line(error: BaseException) -> str:
    """Return the first nonempty line of an error's message, or the error's type."""
    lines = without_secrets(error).splitlines()
    return sanitized(next((line for line in lines if line.strip()), type(error).__name__))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return True  # a diverged run writes NaN
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _are_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def _are_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(number is None or _is_number(number) for number in value.values())


def are_transforms(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(part, dict) for part in value) and _is_plain(value)


def _is_plain(value: Any) -> bool:
    try:
        check_plain(value)
    except ValueError:
        return False
    return True


# A check and a description of the expected type.
Check = tuple[Callable[[Any], bool], str]
DICT: Check = (lambda value: isinstance(value, dict), "a dict")
PLAIN_DICT: Check = (lambda value: isinstance(value, dict) and _is_plain(value), "a dict of plain data")
TEXT: Check = (lambda value: isinstance(value, str), "a string")
NAMES: Check = (_are_names, "a list of strings")
COUNT: Check = (_is_count, "an integer of at least 0")
NUMBER: Check = (_is_number, "a number")
METRICS: Check = (_are_metrics, "a dict of metrics")
TRANSFORMS: Check = (are_transforms, "a list of dicts of plain data")

META_COUNTS = ("format", "epoch", "iter", "seed", "processes", "steps_per_epoch", "draws")
META_TEXTS = ("optimizer", "transfer_from", "initialized_from", "translated_from", "assumed", "run")
RUNTIME = "message_hub.runtime_info"
# Entry -> check. A missing entry and None are valid. If the parent has a wrong type, the entry is not checked. A name
# that ends in * stands for all names with this prefix.
FORM: dict[str, Check] = {
    **dict.fromkeys(("state_dict", "ema_state_dict", "meta", "meta.dataset_meta", "message_hub", RUNTIME), DICT),
    **dict.fromkeys(("message_hub.log_scalars", "message_hub.resumed_keys"), DICT),
    **dict.fromkeys(("meta.model", "meta.recipe"), PLAIN_DICT),
    **dict.fromkeys(("meta.dataset_meta.classes", "meta.averaged_from", f"{RUNTIME}.checkpoints"), NAMES),
    "meta.test_transforms": TRANSFORMS,
    **{f"meta.{name}": COUNT for name in META_COUNTS},
    **{f"meta.{name}": TEXT for name in META_TEXTS},
    **{f"{RUNTIME}.{name}": COUNT for name in ("launch", "epoch", "iter", "epoch_validated", "skipped_steps")},
    **{f"{RUNTIME}.{name}": TEXT for name in ("run", "best_ckpt*", "last_ckpt")},
    **{f"{RUNTIME}.{name}": METRICS for name in ("result_last", "result_best")},
    **{f"{RUNTIME}.{name}": NUMBER for name in ("best_score*", "train_seconds")},
}


def check_form(checkpoint: dict, source: str | Path) -> None:
    """Raise ``CheckpointError`` unless the contents of a checkpoint have the types that their readers rely on.

    The types are those in ``FORM``. Keys must be strings, the data must have a limited size (shared data counts each
    time), and tensors must be dense and complete. Optimizer and scheduler states are checked when they are loaded.
    """
    error_prefix = f"{source} is not a checkpoint: "
    for path, (is_valid, expected) in FORM.items():
        *parents, last = path.split(".")
        holder: Any = checkpoint
        for key in parents:
            holder = holder.get(key) if isinstance(holder, dict) else None
        if not isinstance(holder, dict):
            continue
        prefix = last.removesuffix("*")
        keys = [key for key in holder if isinstance(key, str) and key.startswith(prefix)] if prefix != last else [last]
        for key in keys:
            value = holder.get(key)
            if value is not None and not is_valid(value):
                entry = ".".join([*parents, sanitized(key)])
                raise CheckpointError(f"{error_prefix}expected {expected} as its {entry}, got {_kind(value)}: {ADVICE}")
        if not all(isinstance(key, str) for key in holder):
            raise CheckpointError(f"{error_prefix}its {'.'.join(parents) or 'contents'} has keys that are not strings")
    for name in ("state_dict", "ema_state_dict"):
        if not all(isinstance(key, str) for key in checkpoint.get(name) or ()):
            raise CheckpointError(f"{error_prefix}its {name} has keys that are not strings")
    # States may also hold these types; the optimizer's state has integer keys.
    allowed = (torch.Tensor, torch.Size, torch.dtype, torch.device, bytes, bytearray, int, complex, set)
    try:
        check_plain(checkpoint, allowed=allowed)
    except ValueError as error:
        raise CheckpointError(f"{error_prefix}{error}: {ADVICE}") from None
    for keys, value in walk(checkpoint):
        if isinstance(value, torch.Tensor) and not _is_dense(value):
            entry = sanitized(".".join(map(str, keys)))
            raise CheckpointError(f"{error_prefix}its {entry} is not a dense and complete tensor: {ADVICE}")


def _kind(value: Any) -> str:
    return f"{sanitized(repr(value), 60)}" if isinstance(value, (int, float, str)) else type(value).__name__


def _is_dense(tensor: torch.Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
