"""Tables of crate_mm's own settings and guards, used for overrides, for checks and for the README of this folder."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from mmengine.config import Config

from ..registry import suggest


class Setting(NamedTuple):
    """A key of a config.

    Attributes:
        name: dotted name.
        default: default value; ``...`` if MMEngine, or the object that receives the setting, defines the default.
        expected: description of the valid values.
        is_valid: predicate of the valid values.
        help: one line of description.
        recipe: whether results list the setting in a run's recipe: 'always', 'if set', or '' for never.
    """

    name: str
    default: Any
    expected: str
    is_valid: Callable[[Any], bool]
    help: str
    recipe: str = ""


def _int_from(lowest: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _is_auto_scale_lr(value: Any) -> bool:
    """Return whether a value is None or a complete ``auto_scale_lr`` of MMEngine."""
    if not isinstance(value, dict) or not set(value) <= {"base_batch_size", "enable"}:
        return value is None
    return isinstance(value.get("enable", False), bool) and _int_from(1)(value.get("base_batch_size"))


def _one_of(*choices: Any) -> tuple[str, Callable[[Any], bool]]:
    """Return the choices as text, and a predicate of the valid values; True is not valid for 1."""
    names = ", ".join(map(repr, choices))
    return f"one of {names}", lambda value: any(type(value) is type(choice) and value == choice for choice in choices)


def _optional(expected: str, is_valid: Callable[[Any], bool]) -> tuple[str, Callable[[Any], bool]]:
    return f"{expected}, or None", lambda value: value is None or is_valid(value)


# Text and predicate of the valid values.
COUNT = ("a positive integer", _int_from(1))
BOOL = _one_of(True, False)

SETTINGS = (
    Setting("global_batch_size", None, *COUNT, "samples per step, over all processes", recipe="always"),
    Setting(
        "max_batch_per_device",
        None,
        *_optional(*COUNT),
        "maximum batch per device; larger batches are split and their gradients accumulated",
    ),
    Setting(
        "fit_batch",
        False,
        *BOOL,
        "reduce `global_batch_size` to the number of training samples if that is smaller; the log says so",
    ),
    Setting(
        "data_root",
        None,
        *_optional("a folder", lambda value: hasattr(value, "__fspath__") or isinstance(value, str)),
        "`root` of every dataset that has this argument",
    ),
    Setting(
        "auto_scale_lr",
        None,
        "dict(base_batch_size=a positive integer, enable=True or False), or None",
        _is_auto_scale_lr,
        "`dict(base_batch_size=256, enable=True)`: scale the learning rate by batch size / 256",
        recipe="always",
    ),
    Setting(
        "ema_momentum",
        None,
        *_optional("a float between 0 and 1", lambda value: isinstance(value, float) and 0 < value < 1),
        "momentum of the moving average of weights that is evaluated and saved; timm's decay 0.99996 is 4e-5",
        recipe="always",
    ),
    Setting(
        "resize_positions",
        "bicubic",
        *_one_of("bicubic", "bilinear"),
        "interpolation of the start checkpoint's position embeddings to another grid of patches",
    ),
    Setting(
        "resize_patches",
        None,
        *_one_of("bicubic", "bilinear", "new", None),
        "interpolation of the start checkpoint's patch embedding to another size; 'new' reinitializes it, None: error",
    ),
    Setting(
        "transfer_from",
        None,
        *_optional("the name of a submodule", lambda value: isinstance(value, str) and value != ""),
        "submodule of the start checkpoint to use as backbone, such as 'teacher'; None: the one its task declares",
        recipe="if set",
    ),
    Setting(
        "compile_blocks",
        None,
        *_one_of(True, False, "backbone", None),
        "compile the repeated block, or the whole 'backbone'; None: the block, on a GPU",
    ),
    Setting(
        "val_dtype",
        None,
        *_one_of("float32", "bfloat16", "float16", None),
        "precision of the validation during training; None: same as training",
        recipe="if set",
    ),
    Setting(
        "residual_dtype",
        None,
        *_one_of("bfloat16", None),
        "mixed precision: dtype of the residual stream between blocks; None: float32",
        recipe="if set",
    ),
    Setting(
        "tf32",
        False,
        *BOOL,
        "allow TF32 (10-bit mantissa) for float32 matrix products and convolutions on GPUs: faster, less exact",
        recipe="if set",
    ),
    Setting(
        "activation_checkpointing",
        False,
        *_optional("True, False or a list of module names", lambda value: isinstance(value, (bool, list, tuple))),
        "recompute the blocks in the backward pass to save memory",
    ),
    Setting("zero", False, *BOOL, "shard the optimizer's state over the processes to save memory"),
    Setting("find_unused_parameters", False, *BOOL, "multiple processes: allow parameters that receive no gradient"),
    Setting(
        "ddp",
        {},
        "a dict of DistributedDataParallel's options, with compress='bf16', 'fp16' or None",
        lambda value: isinstance(value, dict) and value.get("compress") in ("bf16", "fp16", None),
        "multiple processes: options of DistributedDataParallel; `compress='bf16'` sends gradients in 16 bits",
        recipe="if set",
    ),
    Setting(
        "sync_bn",
        None,
        *_one_of("torch", False, None),
        "multiple GPUs: compute BatchNorm statistics over all processes; None: if the model has BatchNorm",
    ),
    Setting(
        "guards",
        {},
        "a dict of guard names to None or to the guard's arguments",
        lambda value: isinstance(value, dict),
        "hooks that enforce the guarantees of crate_mm/engine/README.md; None switches a guard off",
    ),
    # max_epochs may be None if max_steps is set.
    Setting("train_cfg.max_epochs", ..., COUNT[0], _optional(*COUNT)[1], "length of the run, in epochs", "always"),
    Setting("train_cfg.max_steps", ..., *COUNT, "length of the run, in steps", recipe="if set"),
    Setting("train_cfg.val_interval", ..., *COUNT, "epochs between validations"),
    Setting("optim_wrapper.optimizer.lr", ..., "a number above 0", _positive, "learning rate after the warm-up"),
    Setting(
        "optim_wrapper.max_skipped_steps",
        ...,
        "a non-negative integer",
        _int_from(0),
        "number of steps skipped in a row, for non-finite gradients, that stops the run; 0: the first ends it",
    ),
    Setting(
        "optim_wrapper.decide_on_device",
        ...,
        *_one_of(True, False, None),
        "skip non-finite steps on the GPU without a host synchronization; None: if the optimizer supports it",
    ),
)


# Config sections that belong to a run's recipe, in addition to the settings above.
RECIPE_PARTS = ("model", "optim_wrapper", "param_scheduler")
PARAMWISE_KEYS = (
    *("bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "flat_decay_mult"),
    *("dwconv_decay_mult", "dcn_offset_lr_mult", "bypass_duplicate", "custom_keys", "layer_decay"),
)
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")

# Value types of keys that no signature declares.
VALUE_TYPES = {
    "data_root": {str, type(None)},
    "model.head.num_classes": {int, type(None)},  # None: taken from the training data
    "train_cfg.max_epochs": {int, type(None)},
    "train_cfg.max_steps": {int},
}


class Guard(NamedTuple):
    """A hook that enforces a guarantee: its type in ``HOOKS``, and the effect of switching it off."""

    type: str
    effect_if_off: str


GUARDS = {
    "seeding": Guard("SeedEachIteration", "a resumed run draws different random numbers than an uninterrupted one"),
    "finite": Guard("StopOnNonFiniteLoss", "a run continues with a non-finite loss"),
    "unreadable": Guard("UnreadableImages", "unreadable images are replaced silently"),
    "log_history": Guard("TrimLogHistory", "each iteration gets slower as the log grows"),
    "statistics": Guard("SameStatistics", "each process evaluates with its own BatchNorm statistics"),
    "result_file": Guard("ResultFile", "no result.json is written, and checkpoints do not name their run"),
}

# Settings that resolve_config() derives, and their sources.
DERIVED = {
    "train_dataloader.batch_size": "global_batch_size and the number of processes",
    "optim_wrapper.accumulative_counts": "global_batch_size and max_batch_per_device",
    "train_cfg.micro_batches": "global_batch_size and max_batch_per_device",
}


def fill_settings(cfg: Config) -> None:
    """Set the defaults of missing settings in place, and check all settings.

    Raises:
        ValueError: a setting has an invalid value, or a guard's name is unknown.
    """
    for key, source in DERIVED.items():
        part, name = key.split(".")
        if name in (cfg.get(part) or {}):
            raise ValueError(f"{key} cannot be set: it is derived from {source}")
    for setting in SETTINGS:
        *parents, last = setting.name.split(".")
        if not parents and setting.default is not ...:
            cfg.setdefault(last, setting.default)
        holder: Any = cfg
        for part in parents:
            holder = holder.get(part) if isinstance(holder, dict) or holder is cfg else None
        if holder is None or last not in holder or (last == "global_batch_size" and holder[last] is None):
            continue
        if not setting.is_valid(holder[last]):
            raise ValueError(f"{setting.name} must be {setting.expected}, got {holder[last]!r}")
    unknown = next((name for name in cfg.guards if name not in GUARDS), None)
    if unknown is not None:
        raise ValueError(f"guards has no {unknown!r}: {suggest(unknown, list(GUARDS))}")


def guard_hooks(cfg: Config) -> tuple[list[dict], dict[str, str]]:
    """Return the hooks of the active guards, and the effect of each guard that is off, by its name.

    A guard that ``custom_hooks`` configures is not added again.
    """
    on, off = [], {}
    types = (hook.get("type") for hook in cfg.get("custom_hooks") or () if isinstance(hook, dict))
    own = {name.rpartition(".")[2] for name in types if isinstance(name, str)}
    for name, guard in GUARDS.items():
        settings = cfg.guards.get(name, {})
        if settings is None or settings is False:
            off[name] = guard.effect_if_off
        elif guard.type not in own:
            on.append({"type": guard.type, **settings})
    return on, off
