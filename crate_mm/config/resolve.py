"""Resolve a user's config for the Runner: fill in all derived settings."""

import copy
import inspect
import os
import uuid
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import get_rank, get_world_size

from .. import registry
from ..io.files import home
from ..io.untrusted import env_number
from ..registry import DATASETS
from .batch import nearest_even, plan_batch
from .images import fill_images
from .load import require_model
from .settings import LOADERS, fill_settings, guard_hooks

MMENGINE_HOOKS = {"runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint"}


def default_work_dir(cfg: Config) -> str:
    """Return ``work_dirs/<config name>``."""
    return str(Path("work_dirs") / (Path(cfg.filename).stem if cfg.filename else "crate_mm"))


def expand_home(cfg: Config) -> None:
    """Expand a leading ``~`` in a config's own paths, in place; datasets expand theirs."""
    for key in ("work_dir", "load_from"):
        if isinstance(cfg.get(key), str):
            cfg[key] = home(cfg[key])


def resolve_config(cfg: Config, world_size: int | None = None, with_model: bool = True) -> Config:
    """Return a copy of a user's config with all derived settings filled in, for this process.

    Settings get their defaults, and guards and ``ema_momentum`` become hooks. The batch and the micro-batches of each
    device are computed from ``global_batch_size``, ``max_batch_per_device`` and the number of processes. ``data_root``
    is passed to every dataset with a ``root``. Transforms get the size of the model's images (``fill_images``). k-NN
    metrics get a bank. Loaders get crate_mm's collate function and worker initialization, and at most one worker per
    core.

    Args:
        cfg: a user's config.
        world_size: number of processes, to resolve the config for rank 0; default: world size and rank of this process.
        with_model: whether the config must define its model; False is enough to read the data.

    Raises:
        ValueError: the batch cannot be split, a section is missing, or a setting is invalid or cannot be set because it
            is derived.
    """
    if with_model:
        require_model(cfg)
    # MMEngine would format the copy's text at every checkpoint, which takes half a second.
    cfg = Config(copy.deepcopy(cfg.to_dict()), filename=cfg.filename, format_python_code=False)
    fill_images(cfg, needs_model=with_model)
    cfg.setdefault("default_scope", registry.SCOPE)
    expand_home(cfg)
    if not cfg.get("work_dir"):
        cfg.work_dir = default_work_dir(cfg)
    # MMEngine shares state between Runners of the same name, and its default names differ only by the second.
    cfg.experiment_name = f"{Path(cfg.filename or 'crate_mm').stem}_{uuid.uuid4().hex[:8]}"
    fill_settings(cfg)
    guards, _ = guard_hooks(cfg)
    cfg.custom_hooks = [*guards, *(cfg.get("custom_hooks") or [])]
    # None switches a hook off; MMEngine accepts None only for its own hooks.
    disabled_hooks = {name for name, hook in (cfg.get("default_hooks") or {}).items() if hook is None} - MMENGINE_HOOKS
    for name in disabled_hooks:
        del cfg.default_hooks[name]
    fill_banks(cfg)
    for name in LOADERS:
        if cfg.get(name):
            _prepare_loader(name, cfg[name], cfg.data_root)
    for metric in _knn_metrics(cfg, "val") + _knn_metrics(cfg, "test"):
        if isinstance(metric.get("bank"), dict):
            _fill_root(metric["bank"], cfg.data_root)
    if cfg.get("train_dataloader"):
        _prepare_training(cfg, world_size or get_world_size(), 0 if world_size else get_rank())
    return cfg


def _prepare_loader(name: str, loader: dict, data_root: str | None) -> None:
    dataset = loader.get("dataset")
    if not isinstance(dataset, dict) or "type" not in dataset:
        raise ValueError(f"{name}.dataset must be a dict(type=...), got {dataset!r}")
    if name != "train_dataloader" and loader.get("drop_last"):
        raise ValueError(f"{name}.drop_last would exclude samples from the metrics: remove it")
    loader.setdefault("collate_fn", {"type": f"{registry.SCOPE}.collate"})
    loader.setdefault("worker_init_fn", {"type": f"{registry.SCOPE}.init_worker"})
    # No workers if a process has less than one core.
    loader["num_workers"] = min(loader.get("num_workers", 0), share_of_cores())
    if loader["num_workers"] == 0:
        loader["persistent_workers"] = False
        loader.pop("prefetch_factor", None)
    loader["pin_memory"] = loader.get("pin_memory", False) and torch.cuda.is_available()
    _fill_root(dataset, data_root)


def _fill_root(dataset: dict, data_root: str | None) -> None:
    for part in (dataset, dataset.get("source")):
        takes_root = isinstance(part, dict) and "root" in inspect.signature(DATASETS.get(part["type"])).parameters
        if takes_root:
            part.setdefault("root", data_root)


def fill_banks(cfg: Config) -> None:
    """Set the bank of a config's k-NN metrics in place: the training data with the transforms of the evaluation."""
    train = (cfg.get("train_dataloader") or {}).get("dataset")
    for split in ("val", "test"):
        loader = cfg.get(f"{split}_dataloader") or {}
        dataset = loader.get("dataset") or {}
        for metric in _knn_metrics(cfg, split) if train and dataset else ():
            both = "source" in train and "source" in dataset
            metric.setdefault("bank", copy.deepcopy({**dataset, "source": train["source"]} if both else train))
            metric.setdefault("batch_size", loader.get("batch_size", 64))
            metric.setdefault("num_workers", min(loader.get("num_workers", 0), share_of_cores()))


def _knn_metrics(cfg: Config, split: str) -> list[dict]:
    metrics = cfg.get(f"{split}_evaluator") or []
    metrics = [metrics] if isinstance(metrics, dict) else metrics
    return [m for m in metrics if isinstance(m, dict) and str(m.get("type")).rpartition(".")[2] == "KNNMetric"]


def share_of_cores() -> int:
    """Return the number of the node's cores per process; 0 if there are fewer cores than processes.

    With torchrun, all processes of a node see all cores. srun may bind a task to its own cores: the task then sees
    fewer cores than the job has on the node, and all cores that it sees are its own.
    """
    visible = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # Linux only
    by_slurm = "LOCAL_WORLD_SIZE" not in os.environ
    processes = max(env_number("LOCAL_WORLD_SIZE", env_number("SLURM_NTASKS_PER_NODE", 1)), 1)
    if processes == 1:
        return max(visible, 1)
    bound = by_slurm and visible < env_number("SLURM_CPUS_ON_NODE", os.cpu_count() or 1)
    return visible if bound else visible // processes


def _prepare_training(cfg: Config, world_size: int, rank: int) -> None:
    for part in ("train_cfg", "optim_wrapper"):
        if not cfg.get(part):
            raise ValueError(f"the config has a train_dataloader but no {part}")
    if not cfg.global_batch_size:
        raise ValueError("the config has no global_batch_size: set it to the images per optimization step")
    plan = plan_batch(cfg.global_batch_size, world_size, cfg.max_batch_per_device)
    loader = cfg.train_dataloader
    loader.batch_size, loader.drop_last = plan.batch_size_of(rank), True
    loader.setdefault("sampler", {})
    loader.sampler.setdefault("type", "GlobalBatchSampler")
    if loader.sampler.type == "GlobalBatchSampler":
        loader.sampler.global_batch_size = plan.global_batch_size
    elif len(set(plan.batch_sizes)) > 1:
        raise ValueError(
            f"global_batch_size {plan}: only GlobalBatchSampler supports unequal batches, {loader.sampler.type} does "
            f"not: set {nearest_even(plan.global_batch_size, world_size)}"
        )
    cfg.train_cfg.setdefault("type", "TrainLoop")
    epochs, steps = cfg.train_cfg.get("max_epochs"), cfg.train_cfg.get("max_steps")
    if epochs is not None and steps is not None:
        raise ValueError(
            f"train_cfg has max_epochs={epochs} and max_steps={steps}: set max_epochs=None, or remove one of them"
        )
    if epochs is None and steps is None and cfg.train_cfg.type == "TrainLoop":
        raise ValueError("train_cfg does not define the length of the run: set max_epochs or max_steps")
    cfg.train_cfg.micro_batches = plan.micro_batches
    cfg.optim_wrapper.accumulative_counts = plan.micro_batches
    schedules = cfg.get("param_scheduler") or []
    for schedule in [schedules] if isinstance(schedules, dict) else schedules:
        if not isinstance(schedule, dict):
            raise ValueError(f"param_scheduler must be a dict(type=...), a list of dicts or None, got {schedule!r}")
        if schedule.get("type") in ("WarmupCosineLR", "CosineWeightDecay"):
            schedule.convert_to_iter_based = True  # configured in epochs, updated in iterations
            if steps is not None and schedule.get("end") is None:
                schedule.setdefault("end_step", steps)
        elif steps is not None and schedule.get("convert_to_iter_based") and schedule.get("end") is None:
            raise ValueError(
                f"param_scheduler {schedule.get('type')} would not end with train_cfg.max_steps={steps}: set its end "
                "in epochs, or set by_epoch=False and use steps throughout"
            )
    if cfg.ema_momentum is not None:
        cfg.custom_hooks = [*cfg.custom_hooks, {"type": "EMAHook", "momentum": cfg.ema_momentum}]
