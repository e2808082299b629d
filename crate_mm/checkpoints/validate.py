"""The form of what a checkpoint says beside its weights and states, checked once, where the file is opened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..io.untrusted import check_plain, sanitized, without_secrets

# Of the names of the weights and of what a file says beside them, which it says as ``meta.format``. Files of before
# there were versions say none: they have these names, or those of an earlier crate_mm.
FORMAT = 1

# For files of others that plain torch.load takes.
ADVICE = "save its weights by themselves, as {name: tensor.clone()}, and they are taken"


class CheckpointError(ValueError):
    """A file that is no checkpoint, or not one for this model. Its message is one line, whatever names it quotes."""

    def __init__(self, message: str) -> None:
        super().__init__(sanitized(without_secrets(message), 2000))


class DamagedError(CheckpointError):
    """A file that is not what was written."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not empty, or the error's type."""
    lines = without_secrets(error).splitlines()
    return sanitized(next((line for line in lines if line.strip()), type(error).__name__))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _number(value: Any) -> bool:
    if isinstance(value, float):
        return True  # NaN too, which a run that diverges writes
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def _dict(value: Any) -> bool:
    return isinstance(value, dict)


def _description(value: Any) -> bool:
    return isinstance(value, dict) and _is_plain(value)


def _figures(value: Any) -> bool:
    return isinstance(value, dict) and all(number is None or _number(number) for number in value.values())


def are_transforms(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_dict, value)) and _is_plain(value)


def _is_plain(value: Any) -> bool:
    try:
        check_plain(value)
    except ValueError:
        return False
    return True


# Entry -> what it must be and the words for it. An entry that is missing or None is left to its readers; one below an
# entry of another kind is not looked for. A name that ends in * stands for all that begin so.
FORM: dict[str, tuple[Callable[[Any], bool], str]] = {
    "state_dict": (_dict, "a dict"),
    "ema_state_dict": (_dict, "a dict"),
    "meta": (_dict, "a dict"),
    "meta.format": (_whole, "a whole number"),
    "meta.model": (_description, "a dict of plain data"),
    "meta.dataset_meta": (_dict, "a dict"),
    "meta.dataset_meta.classes": (_names, "a list of names"),
    "meta.epoch": (_whole, "a whole number"),
    "meta.iter": (_whole, "a whole number"),
    "meta.seed": (_whole, "a whole number"),
    "meta.processes": (_whole, "a whole number"),
    "meta.steps_per_epoch": (_whole, "a whole number"),
    "meta.draws": (_whole, "a whole number"),
    "meta.optimizer": (_text, "a name"),
    "meta.transfer_from": (_text, "a name"),
    "meta.initialized_from": (_text, "a name"),
    "meta.test_transforms": (are_transforms, "a list of dicts of plain data"),
    "meta.translated_from": (_text, "a name"),
    "meta.averaged_from": (_names, "a list of names"),
    "meta.assumed": (_text, "a sentence"),
    "meta.run": (_text, "a name"),
    "meta.recipe": (_description, "a dict of plain data"),
    "message_hub": (_dict, "a dict"),
    "message_hub.log_scalars": (_dict, "a dict"),
    "message_hub.resumed_keys": (_dict, "a dict"),
    "message_hub.runtime_info": (_dict, "a dict"),
    "message_hub.runtime_info.run": (_text, "a name"),
    "message_hub.runtime_info.launch": (_whole, "a whole number"),
    "message_hub.runtime_info.result_last": (_figures, "a dict of figures"),
    "message_hub.runtime_info.result_best": (_figures, "a dict of figures"),
    "message_hub.runtime_info.best_score*": (_number, "a number"),
    "message_hub.runtime_info.best_ckpt*": (_text, "a file's name"),
    "message_hub.runtime_info.last_ckpt": (_text, "a file's name"),
    "message_hub.runtime_info.checkpoints": (_names, "a list of file names"),
    "message_hub.runtime_info.train_seconds": (_number, "a number"),
    "message_hub.runtime_info.epoch": (_whole, "a whole number"),
    "message_hub.runtime_info.iter": (_whole, "a whole number"),
    "message_hub.runtime_info.epoch_validated": (_whole, "a whole number"),
    "message_hub.runtime_info.skipped_steps": (_whole, "a whole number"),
}


def check_form(checkpoint: dict, source: str | Path) -> None:
    """Raise ``CheckpointError`` unless all that is read of a checkpoint has the form that its readers rely on.

    That is: ``FORM``; keys that are names; data of a bounded size, what is shared being counted each time; tensors
    that are dense, with all of their numbers in memory. The optimizer's and the schedules' states are checked by those
    that they are for.
    """
    wrong = f"{source} is no checkpoint: "
    for path, (right, words) in FORM.items():
        *above, last = path.split(".")
        holder: Any = checkpoint
        for key in above:
            holder = holder.get(key) if isinstance(holder, dict) else None
        if not isinstance(holder, dict):
            continue
        if last.endswith("*"):
            keys = [key for key in holder if isinstance(key, str) and key.startswith(last[:-1])]
        else:
            keys = [last]
        for key in keys:
            value = holder.get(key)
            if value is not None and not right(value):
                entry = ".".join([*above, sanitized(key)])
                raise CheckpointError(f"{wrong}its {entry} is {_kind(value)}, wanted is {words}: {ADVICE}")
        if not all(isinstance(key, str) for key in holder):
            raise CheckpointError(f"{wrong}its {'.'.join(above) or 'contents'} has keys that are no names")
    for name in ("state_dict", "ema_state_dict"):
        if not all(isinstance(key, str) for key in checkpoint.get(name) or ()):
            raise CheckpointError(f"{wrong}its {name} has keys that are no names")
    # What else states hold: the optimizer's has numbers as keys.
    kinds = (torch.Tensor, torch.Size, torch.dtype, torch.device, bytes, bytearray, int, complex, set)
    try:
        check_plain(checkpoint, allowed=kinds)
    except ValueError as error:
        raise CheckpointError(f"{wrong}{error}: {ADVICE}") from None
    _check_tensors(checkpoint, source)


def _kind(value: Any) -> str:
    return f"{sanitized(repr(value), 60)}" if isinstance(value, (int, float, str)) else type(value).__name__


def _check_tensors(checkpoint: dict, source: str | Path) -> None:
    left: list[tuple[str, Any]] = [("", checkpoint)]
    while left:
        name, value = left.pop()
        if isinstance(value, torch.Tensor) and not _is_dense(value):
            raise CheckpointError(
                f"{source} is no checkpoint: its {sanitized(name)} is no dense tensor with all its numbers: {ADVICE}"
            )
        if isinstance(value, dict):
            left.extend((f"{name}.{key}" if name else str(key), inner) for key, inner in value.items())
        elif isinstance(value, (list, tuple)):
            left.extend((name, inner) for inner in value)


def _is_dense(tensor: torch.Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
