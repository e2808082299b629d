"""Configs: found, loaded, overridden and checked, and made ready for the Runner."""

import ast
import copy
import inspect
import os
import sys
import uuid
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size

import crate_mm

from .. import registry
from ..registry import DATASETS, suggest
from .batch import plan_batch
from .launch import env_number
from .overrides import DERIVED, apply_overrides, check_overrides

_PACKAGE = Path(crate_mm.__file__).parent
# An installed wheel has the configs inside the package, a clone beside it.
CONFIGS = next(p for p in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if p.is_dir())

MMENGINE_HOOKS = {"runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint"}
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def load_config(config: str | Path | Config, overrides: dict | None = None, mixin: str | None = None) -> Config:
    """Load a config file, or one of the package's by its name, and apply ``--cfg-options`` to it.

    Before these a ``mixin`` is applied, a file of ``configs/_base_`` that changes any config.

    The folder of the file and the current folder are put on ``sys.path``, so that ``custom_imports`` finds files there.

    Raises:
        ValueError: no such file, an error in it, or an override that names no setting.
    """
    if isinstance(config, Config):
        cfg = copy.deepcopy(config)
    else:
        path = find_config(config)
        for folder in (Path.cwd(), path.resolve().parent):
            if str(folder) not in sys.path:
                sys.path.append(str(folder))
        cfg = _load_file(path)
    if not isinstance(cfg.get("model") or {}, dict):
        raise ValueError(f"config {config}: model must be a dict(type=...), it is {cfg.model!r}")
    if mixin:
        cfg.merge_from_dict(Config.fromfile(CONFIGS / "_base_" / mixin, lazy_import=False).to_dict())
    if overrides:
        check_overrides(cfg, overrides)
        apply_overrides(cfg, overrides)
    return cfg


def find_config(config: str | Path) -> Path:
    """The file of a config, given as a path or by the name of one that comes with the package ('crate_base_in1k')."""
    path = Path(config)
    if path.is_file():
        return path
    files = (p for p in sorted(CONFIGS.rglob("*.py")) if "_base_" not in p.parts)
    shipped = {str(p.relative_to(CONFIGS).with_suffix("")): p for p in files}
    name = str(path.with_suffix("")) if path.suffix == ".py" else str(path)
    if name in shipped:
        return shipped[name]
    raise ValueError(f"config {config} does not exist: {suggest(Path(name).name, list(shipped))}")


def _load_file(path: Path) -> Config:
    try:
        return Config.fromfile(path, lazy_import=False)
    except SyntaxError as error:
        # MMEngine names a temporary copy of the file, or of one of its bases.
        imported = f"config {path} imports {error.filename}, line {error.lineno}, which is not valid: {error.msg}"
        raise ValueError(_find_syntax_error(path) or imported) from None
    except ImportError as error:
        cause = error.__cause__ or error
        while cause.__context__ is not None:  # MMEngine replaces the error of the user's own file by advice on paths
            cause = cause.__context__
        raise ValueError(f"config {path}: its custom_imports fail: {type(cause).__name__}: {cause}") from error
    except Exception as error:
        raise ValueError(f"config {path} cannot be loaded: {type(error).__name__}: {error}") from error


def _find_syntax_error(path: Path) -> str | None:
    """Name the file, of a config and those it inherits from, that is not valid Python, and the line; None if none."""
    try:
        tree = ast.parse(path.read_text())
    except SyntaxError as error:
        return f"config {path}, line {error.lineno} is not valid Python: {error.msg}"
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "_base_":
            bases = ast.literal_eval(node.value)
            found = (_find_syntax_error(path.parent / base) for base in ([bases] if isinstance(bases, str) else bases))
            return next(filter(None, found), None)
    return None


def prepare(cfg: Config, world_size: int | None = None) -> Config:
    """Return a copy of a user's config with all that follows from it filled in.

    The batch of each device and its micro-batches follow from ``global_batch_size``, ``max_batch_per_device`` and the
    number of processes; ``data_root`` goes to every dataset that takes a ``root``; loaders get the collate function and
    the worker set-up that our batches need, and at most the cores' number of workers; ``ema_momentum`` becomes a hook.

    Raises:
        ValueError: the batch does not divide, a part is missing, or one is set that follows from others.
    """
    if not cfg.get("model"):
        raise ValueError("the config has no model")
    # The copy's text is not prettified: MMEngine does that at every checkpoint, for half a second.
    cfg = Config(copy.deepcopy(cfg.to_dict()), filename=cfg.filename, format_python_code=False)
    cfg.setdefault("default_scope", registry.SCOPE)
    stem = Path(cfg.filename).stem if cfg.filename else "crate_mm"
    cfg.setdefault("work_dir", str(Path("work_dirs") / stem))
    # MMEngine shares state between Runners of one name, which without this are those made in the same second.
    cfg.experiment_name = f"{stem}_{uuid.uuid4().hex[:8]}"
    # None switches a hook off; MMEngine takes that for its own hooks alone.
    own = {name for name, hook in (cfg.get("default_hooks") or {}).items() if hook is None} - MMENGINE_HOOKS
    for name in own:
        del cfg.default_hooks[name]
    for name in LOADERS:
        if cfg.get(name):
            _prepare_loader(name, cfg[name], cfg.get("data_root"))
    if cfg.get("train_dataloader"):
        _prepare_training(cfg, world_size or get_world_size())
    return cfg


def _prepare_loader(name: str, loader: dict, data_root: str | None) -> None:
    if "source" not in loader.get("dataset", {}):
        kind = loader.get("dataset", {}).get("type")
        raise ValueError(
            f"{name}.dataset of type {kind!r} has no source: write dict(type='ClassificationDataset', "
            f"source=dict(type={kind!r}, ...), transforms=[...])"
        )
    loader.setdefault("collate_fn", {"type": f"{registry.SCOPE}.collate"})
    loader.setdefault("worker_init_fn", {"type": f"{registry.SCOPE}.init_worker"})
    # No more workers than this process's share of the cores, and none where it has less than one.
    processes = max(env_number("LOCAL_WORLD_SIZE", env_number("SLURM_NTASKS_PER_NODE", 1)), 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # Linux alone has it
    share = max(cores // processes, 1 if processes == 1 else 0)
    loader["num_workers"] = min(loader.get("num_workers", 0), share)
    if loader["num_workers"] == 0:
        loader["persistent_workers"] = False
        loader.pop("prefetch_factor", None)
    loader["pin_memory"] = loader.get("pin_memory", False) and torch.cuda.is_available()
    source = loader["dataset"]["source"]
    if isinstance(source, dict) and "root" in inspect.signature(DATASETS.get(source["type"])).parameters:
        source.setdefault("root", data_root)


def _prepare_training(cfg: Config, world_size: int) -> None:
    for part in ("train_cfg", "optim_wrapper"):
        if not cfg.get(part):
            raise ValueError(f"the config has a train_dataloader but no {part}")
    for key, source in DERIVED.items():
        part, name = key.split(".")
        if name in cfg[part]:
            raise ValueError(f"{key} cannot be set: it follows from {source}")
    if not cfg.get("global_batch_size"):
        raise ValueError("the config has no global_batch_size: state the images of one optimisation step there")
    for name in ("max_epochs", "val_interval"):
        value = cfg.train_cfg.get(name, 1)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"train_cfg.{name} must be a whole number of at least 1, got {value!r}")
    lr = cfg.optim_wrapper.get("optimizer", {}).get("lr", 1.0)
    if not isinstance(lr, (int, float)) or not 0 < lr < float("inf"):
        raise ValueError(f"optim_wrapper.optimizer.lr must be a number above 0, got {lr!r}")
    for name, values in (("compile_blocks", (True, False, None)), ("zero", (True, False))):
        if not any(cfg.get(name, False) is value for value in values):
            raise ValueError(f"{name} must be one of {', '.join(map(str, values))}, got {cfg[name]!r}")
    skipped = cfg.optim_wrapper.get("max_skipped_steps", 0)
    if not isinstance(skipped, int) or skipped < 0:
        raise ValueError(f"optim_wrapper.max_skipped_steps must be a whole number of at least 0, got {skipped!r}")
    momentum = cfg.get("ema_momentum")
    if momentum is not None and not (isinstance(momentum, float) and 0 < momentum < 1):
        raise ValueError(
            f"ema_momentum, the share of the new weights in the average, must be in 0..1, got {momentum!r}"
        )
    plan = plan_batch(cfg.global_batch_size, world_size, cfg.get("max_batch_per_device"))
    loader = cfg.train_dataloader
    loader.batch_size, loader.drop_last = plan.per_device, True
    loader.setdefault("sampler", {})
    loader.sampler.setdefault("type", "GlobalBatchSampler")
    if loader.sampler.type == "GlobalBatchSampler":
        loader.sampler.global_batch_size = plan.global_batch_size
    cfg.train_cfg.setdefault("type", "TrainLoop")
    cfg.train_cfg.micro_batches = plan.micro_batches
    cfg.optim_wrapper.accumulative_counts = plan.micro_batches
    schedules = cfg.get("param_scheduler") or []
    for schedule in [schedules] if isinstance(schedules, dict) else schedules:
        if not isinstance(schedule, dict):
            raise ValueError(f"param_scheduler must be a dict(type=...), a list of such or None, got {schedule!r}")
        if schedule.get("type") == "WarmupCosineLR":
            schedule.convert_to_iter_based = True  # it is given in epochs and goes by iterations
    if momentum is not None:
        cfg.custom_hooks = [*cfg.get("custom_hooks", []), {"type": "EMAHook", "momentum": momentum}]
