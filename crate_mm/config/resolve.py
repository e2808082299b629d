"""A user's config, made ready for the Runner: all that follows from it is filled in."""

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
from .load import require_model
from .settings import fill_settings, guard_hooks

MMENGINE_HOOKS = {"runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint"}
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def default_work_dir(cfg: Config) -> str:
    """``work_dirs/<the config's name>``."""
    return str(Path("work_dirs") / (Path(cfg.filename).stem if cfg.filename else "crate_mm"))


def expand_home(cfg: Config) -> None:
    """Let a leading ``~`` be the home folder in the paths that a config has for itself; datasets see to theirs."""
    for key in ("work_dir", "load_from"):
        if isinstance(cfg.get(key), str):
            cfg[key] = home(cfg[key])


def resolve_config(cfg: Config, world_size: int | None = None, with_model: bool = True) -> Config:
    """Return a copy of a user's config with all that follows from it filled in, for this process.

    Settings get their defaults and guards become hooks. The batch of each device and its micro-batches follow from
    ``global_batch_size``, ``max_batch_per_device`` and the number of processes; ``data_root`` goes to every dataset
    that takes a ``root``; k-NN metrics get a bank; loaders get the collate function and the worker set-up that our
    batches need, and at most the cores' number of workers; ``ema_momentum`` becomes a hook.

    Args:
        cfg: the config.
        world_size: number of processes, for the first of which it is then; this run's if not given.
        with_model: whether it must say what its model is, which its data does not need.

    Raises:
        ValueError: the batch cannot be spread, a part is missing, or a setting is wrong or follows from others.
    """
    if with_model:
        require_model(cfg)
    # The copy's text is not prettified: MMEngine does that at every checkpoint, for half a second.
    cfg = Config(copy.deepcopy(cfg.to_dict()), filename=cfg.filename, format_python_code=False)
    cfg.setdefault("default_scope", registry.SCOPE)
    expand_home(cfg)
    if not cfg.get("work_dir"):
        cfg.work_dir = default_work_dir(cfg)
    # MMEngine shares state between Runners of one name, which without this are those made in the same second.
    cfg.experiment_name = f"{Path(cfg.filename or 'crate_mm').stem}_{uuid.uuid4().hex[:8]}"
    fill_settings(cfg)
    guards, _ = guard_hooks(cfg)
    cfg.custom_hooks = [*guards, *(cfg.get("custom_hooks") or [])]
    # None switches a hook off; MMEngine takes that for its own hooks alone.
    own = {name for name, hook in (cfg.get("default_hooks") or {}).items() if hook is None} - MMENGINE_HOOKS
    for name in own:
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
        raise ValueError(f"{name}.dataset must be a dict(type=...), it is {dataset!r}")
    if name != "train_dataloader" and loader.get("drop_last"):
        raise ValueError(f"{name}.drop_last would leave samples out of the figures: leave it out")
    loader.setdefault("collate_fn", {"type": f"{registry.SCOPE}.collate"})
    loader.setdefault("worker_init_fn", {"type": f"{registry.SCOPE}.init_worker"})
    # None where a process has less than a core.
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
    """Give the k-NN metrics of a config a bank, in place: the training data with the transforms of the evaluation."""
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
    """How many cores of the node are this process's, 0 if it has less than one.

    torchrun lets all processes of a node see all its cores. srun may have bound a task to cores of its own: then it
    sees fewer than the job has on the node, and what it sees is its share.
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # Linux alone has it
    by_slurm = "LOCAL_WORLD_SIZE" not in os.environ
    processes = max(env_number("LOCAL_WORLD_SIZE", env_number("SLURM_NTASKS_PER_NODE", 1)), 1)
    if processes == 1:
        return max(seen, 1)
    bound = by_slurm and seen < env_number("SLURM_CPUS_ON_NODE", os.cpu_count() or 1)
    return seen if bound else seen // processes


def _prepare_training(cfg: Config, world_size: int, rank: int) -> None:
    for part in ("train_cfg", "optim_wrapper"):
        if not cfg.get(part):
            raise ValueError(f"the config has a train_dataloader but no {part}")
    if not cfg.global_batch_size:
        raise ValueError("the config has no global_batch_size: state the images of one optimisation step there")
    plan = plan_batch(cfg.global_batch_size, world_size, cfg.max_batch_per_device)
    loader = cfg.train_dataloader
    loader.batch_size, loader.drop_last = plan.share(rank), True
    loader.setdefault("sampler", {})
    loader.sampler.setdefault("type", "GlobalBatchSampler")
    if loader.sampler.type == "GlobalBatchSampler":
        loader.sampler.global_batch_size = plan.global_batch_size
    elif len(set(plan.shares)) > 1:
        raise ValueError(
            f"global_batch_size {plan}: GlobalBatchSampler alone deals out shares that differ, {loader.sampler.type} "
            f"does not; with it, set {nearest_even(plan.global_batch_size, world_size)}"
        )
    cfg.train_cfg.setdefault("type", "TrainLoop")
    epochs, steps = cfg.train_cfg.get("max_epochs"), cfg.train_cfg.get("max_steps")
    if epochs is not None and steps is not None:
        raise ValueError(
            f"train_cfg has max_epochs={epochs} and max_steps={steps}: set max_epochs=None, or leave one out"
        )
    if epochs is None and steps is None and cfg.train_cfg.type == "TrainLoop":
        raise ValueError("train_cfg does not give the length of the run: set max_epochs or max_steps")
    cfg.train_cfg.micro_batches = plan.micro_batches
    cfg.optim_wrapper.accumulative_counts = plan.micro_batches
    schedules = cfg.get("param_scheduler") or []
    for schedule in [schedules] if isinstance(schedules, dict) else schedules:
        if not isinstance(schedule, dict):
            raise ValueError(f"param_scheduler must be a dict(type=...), a list of such or None, got {schedule!r}")
        if schedule.get("type") == "WarmupCosineLR":
            schedule.convert_to_iter_based = True  # it is given in epochs and goes by iterations
            if steps is not None and schedule.get("end") is None:
                schedule.setdefault("end_step", steps)
        elif steps is not None and schedule.get("convert_to_iter_based") and schedule.get("end") is None:
            raise ValueError(
                f"param_scheduler {schedule.get('type')} would not end with train_cfg.max_steps={steps}: give its end "
                "in epochs, or by_epoch=False and all of it in steps"
            )
    if cfg.ema_momentum is not None:
        cfg.custom_hooks = [*cfg.custom_hooks, {"type": "EMAHook", "momentum": cfg.ema_momentum}]
