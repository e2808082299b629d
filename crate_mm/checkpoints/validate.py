"""Check the types of a checkpoint's metadata and states once, when the file is opened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..io.untrusted import check_plain, sanitized, walk, without_secrets

# Version of the parameter names and metadata, stored as ``meta.format``. Old files have no version; they use these
# names, or those of an earlier crate_mm.
FORMAT = 1

# For third-party files that torch.load accepts.
ADVICE = "save only its weights, as {name: tensor.clone()}"


class CheckpointError(ValueError):
    """A file is not a checkpoint, or is of another model. The message is always a single line."""

    def __init__(self, message: str) -> None:
        super().__init__(sanitized(without_secrets(message), 2000))


class DamagedError(CheckpointError):
    """A file's content differs from what was written."""


def first_line(error: BaseException) -> str:
    """Return the first nonempty line of an error's message, or the error's type."""
    lines = without_secrets(error).splitlines()
    return sanitized(next((line for line in lines if line.strip()), type(error).__name__))


def _is_nonnegative_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _number(value: Any) -> bool:
    if isinstance(value, float):
        return True  # a diverged run writes NaN
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def _dict(value: Any) -> bool:
    return isinstance(value, dict)


def _description(value: Any) -> bool:
    return isinstance(value, dict) and _is_plain(value)


def _metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(number is None or _number(number) for number in value.values())


def are_transforms(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_dict, value)) and _is_plain(value)


def _is_plain(value: Any) -> bool:
    try:
        check_plain(value)
    except ValueError:
        return False
    return True


# Entry -> check, and the expected type as text. A missing entry or None is valid here. An entry whose parent has a
# wrong type is not checked. A name that ends in * stands for all names with this prefix.
FORM: dict[str, tuple[Callable[[Any], bool], str]] = {
    "state_dict": (_dict, "a dict"),
    "ema_state_dict": (_dict, "a dict"),
    "meta": (_dict, "a dict"),
    "meta.format": (_is_nonnegative_int, "an integer of at least 0"),
    "meta.model": (_description, "a dict of plain data"),
    "meta.dataset_meta": (_dict, "a dict"),
    "meta.dataset_meta.classes": (_names, "a list of strings"),
    "meta.epoch": (_is_nonnegative_int, "an integer of at least 0"),
    "meta.iter": (_is_nonnegative_int, "an integer of at least 0"),
    "meta.seed": (_is_nonnegative_int, "an integer of at least 0"),
    "meta.processes": (_is_nonnegative_int, "an integer of at least 0"),
    "meta.steps_per_epoch": (_is_nonnegative_int, "an integer of at least 0"),
    "meta.draws": (_is_nonnegative_int, "an integer of at least 0"),
    "meta.optimizer": (_text, "a string"),
    "meta.transfer_from": (_text, "a string"),
    "meta.initialized_from": (_text, "a string"),
    "meta.test_transforms": (are_transforms, "a list of dicts of plain data"),
    "meta.translated_from": (_text, "a string"),
    "meta.averaged_from": (_names, "a list of strings"),
    "meta.assumed": (_text, "a string"),
    "meta.run": (_text, "a string"),
    "meta.recipe": (_description, "a dict of plain data"),
    "message_hub": (_dict, "a dict"),
    "message_hub.log_scalars": (_dict, "a dict"),
    "message_hub.resumed_keys": (_dict, "a dict"),
    "message_hub.runtime_info": (_dict, "a dict"),
    "message_hub.runtime_info.run": (_text, "a string"),
    "message_hub.runtime_info.launch": (_is_nonnegative_int, "an integer of at least 0"),
    "message_hub.runtime_info.result_last": (_metrics, "a dict of metrics"),
    "message_hub.runtime_info.result_best": (_metrics, "a dict of metrics"),
    "message_hub.runtime_info.best_score*": (_number, "a number"),
    "message_hub.runtime_info.best_ckpt*": (_text, "a file name"),
    "message_hub.runtime_info.last_ckpt": (_text, "a file name"),
    "message_hub.runtime_info.checkpoints": (_names, "a list of file names"),
    "message_hub.runtime_info.train_seconds": (_number, "a number"),
    "message_hub.runtime_info.epoch": (_is_nonnegative_int, "an integer of at least 0"),
    "message_hub.runtime_info.iter": (_is_nonnegative_int, "an integer of at least 0"),
    "message_hub.runtime_info.epoch_validated": (_is_nonnegative_int, "an integer of at least 0"),
    "message_hub.runtime_info.skipped_steps": (_is_nonnegative_int, "an integer of at least 0"),
}


def check_form(checkpoint: dict, source: str | Path) -> None:
    """Raise ``CheckpointError`` unless the contents of a checkpoint have the types that their readers rely on.

    This checks ``FORM``, that keys are strings, that the data has a limited size (shared data counts each time), and
    that tensors are dense and complete. The states of optimizer and schedulers are checked when they are loaded.
    """
    error_prefix = f"{source} is not a checkpoint: "
    for path, (is_valid, expected) in FORM.items():
        *parents, last = path.split(".")
        holder: Any = checkpoint
        for key in parents:
            holder = holder.get(key) if isinstance(holder, dict) else None
        if not isinstance(holder, dict):
            continue
        if last.endswith("*"):
            keys = [key for key in holder if isinstance(key, str) and key.startswith(last[:-1])]
        else:
            keys = [last]
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
    # Types that states may also hold; the optimizer's state has integer keys.
    allowed = (torch.Tensor, torch.Size, torch.dtype, torch.device, bytes, bytearray, int, complex, set)
    try:
        check_plain(checkpoint, allowed=allowed)
    except ValueError as error:
        raise CheckpointError(f"{error_prefix}{error}: {ADVICE}") from None
    _check_tensors(checkpoint, source)


def _kind(value: Any) -> str:
    return f"{sanitized(repr(value), 60)}" if isinstance(value, (int, float, str)) else type(value).__name__


def _check_tensors(checkpoint: dict, source: str | Path) -> None:
    for keys, value in walk(checkpoint):
        if isinstance(value, torch.Tensor) and not _is_dense(value):
            raise CheckpointError(
                f"{source} is not a checkpoint: its {sanitized('.'.join(map(str, keys)))} is not a dense and complete "
                f"tensor: {ADVICE}"
            )


def _is_dense(tensor: torch.Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
