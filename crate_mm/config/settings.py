"""The settings that are ours, beside MMEngine's, each a row; what an override may name, what is checked and what the
README of this folder lists follow from these tables."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from mmengine.config import Config

from ..registry import suggest


class Setting(NamedTuple):
    """A key of a config: its default, what is right in words and as a check, and one line on what it does."""

    name: str
    default: Any
    words: str
    right: Callable[[Any], bool]
    help: str


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(value is other for other in values)


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _scales(value: Any) -> bool:
    """Whether it is MMEngine's ``auto_scale_lr``, whole."""
    if not isinstance(value, dict) or not set(value) <= {"base_batch_size", "enable"}:
        return value is None
    return isinstance(value.get("enable", False), bool) and _whole(1)(value.get("base_batch_size"))


# A default of ... means that MMEngine, or whoever takes the setting, has the default.
SETTINGS = (
    Setting("global_batch_size", None, "a whole number of at least 1", _whole(1), "samples a step, over all processes"),
    Setting(
        "max_batch_per_device",
        None,
        "a whole number of at least 1, or None",
        lambda value: value is None or _whole(1)(value),
        "the largest batch a device takes; more is split and accumulated",
    ),
    Setting(
        "data_root",
        None,
        "a folder, or None",
        lambda value: value is None or hasattr(value, "__fspath__") or isinstance(value, str),
        "goes to every dataset that takes a root",
    ),
    Setting(
        "auto_scale_lr",
        None,
        "dict(base_batch_size=a whole number of at least 1, enable=True or False), or None",
        _scales,
        "`dict(base_batch_size=256, enable=True)`: the rate is for 256 samples a step, and goes with the batch",
    ),
    Setting(
        "ema_momentum",
        None,
        "in 0..1",
        lambda value: value is None or (isinstance(value, float) and 0 < value < 1),
        "the share of the new weights in an average, which is evaluated and saved; timm's decay 0.99996 is 4e-5",
    ),
    Setting(
        "resize_positions",
        "bicubic",
        "'bicubic' or 'bilinear'",
        lambda value: value in ("bicubic", "bilinear"),
        "how position embeddings of a checkpoint to start from go to another grid of patches",
    ),
    Setting(
        "resize_patches",
        None,
        "'bilinear', 'bicubic', 'new' or None",
        lambda value: value in ("bicubic", "bilinear", "new", None),
        "how its patch embedding goes to another patch size; 'new' starts it anew, None refuses another size",
    ),
    Setting(
        "transfer_from",
        None,
        "the name of a part, or None",
        lambda value: value is None or (isinstance(value, str) and value != ""),
        "the part of a checkpoint to start from that becomes the backbone, as 'teacher'; None: as its task declares",
    ),
    Setting(
        "compile_blocks",
        None,
        "one of True, False, 'backbone', None",
        lambda value: _one_of(True, False, None)(value) or value == "backbone",
        "compile the repeated block, or the whole 'backbone'; None: the block, where there is a GPU",
    ),
    Setting(
        "val_dtype",
        None,
        "one of 'float32', 'bfloat16', 'float16', None",
        lambda value: value in ("float32", "bfloat16", "float16", None),
        "the precision that training validates in; None: the one that it trains in",
    ),
    Setting(
        "residual_dtype",
        None,
        "'bfloat16' or None",
        lambda value: value in ("bfloat16", None),
        "mixed precision: what the blocks hand on their tokens in; None: float32",
    ),
    Setting(
        "tf32",
        False,
        "one of True, False",
        _one_of(True, False),
        "GPUs: products of float32 take 10 bits of what they multiply, and are faster",
    ),
    Setting(
        "activation_checkpointing",
        False,
        "True, False, None or a list of modules' names",
        lambda value: _one_of(True, False, None)(value) or isinstance(value, (list, tuple)),
        "recompute the blocks in the backward pass, for less memory",
    ),
    Setting(
        "zero",
        False,
        "one of True, False",
        _one_of(True, False),
        "split the optimizer's state over the processes, for less memory",
    ),
    Setting(
        "find_unused_parameters",
        False,
        "one of True, False",
        _one_of(True, False),
        "several processes: let parameters go without a gradient",
    ),
    Setting(
        "ddp",
        {},
        "a dict of DistributedDataParallel's options, or compress='bf16' or 'fp16'",
        lambda value: isinstance(value, dict) and value.get("compress") in ("bf16", "fp16", None),
        "several processes: options of DistributedDataParallel; `compress='bf16'` sends gradients in 16 bits",
    ),
    Setting(
        "sync_bn",
        None,
        "one of 'torch', False, None",
        lambda value: value is None or value is False or value == "torch",
        "several GPUs: BatchNorm's statistics are of all processes' samples; None: where a model has BatchNorm",
    ),
    Setting(
        "guards",
        {},
        "a dict: a guard's name to None, or to its settings",
        lambda value: isinstance(value, dict),
        "what keeps the promises of crate_mm/engine/README.md; None switches a guard off",
    ),
    Setting(
        "train_cfg.max_epochs",
        ...,
        "a whole number of at least 1",
        lambda value: value is None or _whole(1)(value),  # None beside max_steps
        "length of the run, in epochs",
    ),
    Setting("train_cfg.max_steps", ..., "a whole number of at least 1", _whole(1), "length of the run, in steps"),
    Setting("train_cfg.val_interval", ..., "a whole number of at least 1", _whole(1), "epochs between validations"),
    Setting("optim_wrapper.optimizer.lr", ..., "a number above 0", _positive, "the learning rate after the warm-up"),
    Setting(
        "optim_wrapper.max_skipped_steps",
        ...,
        "a whole number of at least 0",
        _whole(0),
        "how many steps in a row may be skipped for gradients that are not finite",
    ),
    Setting(
        "optim_wrapper.decide_on_device",
        ...,
        "True, False or None",
        _one_of(True, False, None),
        "whether a GPU skips such a step without the host's waiting for it; None: where the optimizer can",
    ),
)


# Of which kind the values of some keys are that no signature tells.
KINDS = {
    "data_root": {str, type(None)},
    "train_cfg.max_epochs": {int, type(None)},
    "train_cfg.max_steps": {int},
}


class Guard(NamedTuple):
    """A hook that keeps a promise, by the type of ``HOOKS``, and what is lost without it."""

    type: str
    without: str


GUARDS = {
    "seeding": Guard("SeedEachIteration", "a resumed run draws other numbers than the uninterrupted one"),
    "finite": Guard("StopOnNonFiniteLoss", "a run goes on when its loss is not finite"),
    "unreadable": Guard("UnreadableImages", "images that cannot be read are replaced without a word"),
    "log_history": Guard("TrimLogHistory", "long runs slow down with the length of their log"),
    "statistics": Guard("SameStatistics", "processes evaluate with BatchNorm statistics of their own"),
    "result_file": Guard("ResultFile", "there is no result.json, and its checkpoints do not name their run"),
}

# What resolve_config() sets, and from what.
DERIVED = {
    "train_dataloader.batch_size": "global_batch_size and the number of processes",
    "optim_wrapper.accumulative_counts": "global_batch_size and max_batch_per_device",
    "train_cfg.micro_batches": "global_batch_size and max_batch_per_device",
}


def fill_settings(cfg: Config) -> None:
    """Give the settings that a config leaves out their defaults, and check all of them.

    Raises:
        ValueError: a setting has a wrong value, or a guard an unknown name.
    """
    for key, source in DERIVED.items():
        part, name = key.split(".")
        if name in (cfg.get(part) or {}):
            raise ValueError(f"{key} cannot be set: it follows from {source}")
    for setting in SETTINGS:
        *above, last = setting.name.split(".")
        if not above and setting.default is not ...:
            cfg.setdefault(last, setting.default)
        holder: Any = cfg
        for part in above:
            holder = holder.get(part) if isinstance(holder, dict) or holder is cfg else None
        if holder is None or last not in holder or (last == "global_batch_size" and holder[last] is None):
            continue
        if not setting.right(holder[last]):
            raise ValueError(f"{setting.name} must be {setting.words}, got {holder[last]!r}")
    unknown = next((name for name in cfg.guards if name not in GUARDS), None)
    if unknown is not None:
        raise ValueError(f"guards has no {unknown!r}: {suggest(unknown, list(GUARDS))}")


def guard_hooks(cfg: Config) -> tuple[list[dict], dict[str, str]]:
    """The guards of a config as hooks, and those that it switches off: by name, what is lost.

    A guard that ``custom_hooks`` names too is there once, as that has it.
    """
    on, off = [], {}
    named = (hook.get("type") for hook in cfg.get("custom_hooks") or () if isinstance(hook, dict))
    own = {name.rpartition(".")[2] for name in named if isinstance(name, str)}
    for name, guard in GUARDS.items():
        settings = cfg.guards.get(name, {})
        if settings is None or settings is False:
            off[name] = guard.without
        elif guard.type not in own:
            on.append({"type": guard.type, **settings})
    return on, off
