"""Write a run's ``result.json`` (config, data, metrics, cost, environment) and the metadata of checkpoints."""

import json
import logging
import platform
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
import torch
import torchvision
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

import crate_mm

from ...analysis.cost import count_complexity
from ...checkpoints import Checkpoint, CheckpointError
from ...checkpoints.validate import FORMAT, are_transforms
from ...config.settings import RECIPE_PARTS, SETTINGS
from ...datasets.base import Source, draws_of
from ...io.files import home, write_whole
from ...io.log import print_log
from ...io.untrusted import check_plain, public, read_json, read_regular, sanitized, without_secrets
from ...models.tasks.base import backbone_of
from ...registry import DATASETS, HOOKS
from ..logs import warn_on_oserror
from ..optim.sharded import optimizer_name

RESULT_FILE = "result.json"
MAX_RESULT_BYTES = 2**24


@HOOKS.register_module()
class ResultFile(Hook):
    """Write ``result.json`` to the work directory after each validation during training, so that a killed run has one.

    ``last`` has the metrics of the last validation, ``best`` the metrics of the best validation by the headline metric
    (from ``save_best``, or the task's). The wall time covers training and validation, over all resumes. ``run``
    identifies the run; its checkpoints, and files published from them, carry the same identifier.
    """

    priority = "ABOVE_NORMAL"  # before the checkpoint, which stores the wall time and the metrics

    def __init__(self) -> None:
        self._lap = time.perf_counter()
        self._cost: dict = {}
        self._first_iteration = 0  # of this launch

    def before_train(self, runner: Runner) -> None:
        self._lap = time.perf_counter()
        self._first_iteration = runner.iter
        if is_main_process():
            self._cost = model_cost(runner.task)
            code_commit()  # cached now: the clone may change before the first validation
        if "run" not in runner.message_hub.runtime_info:
            run_id = [uuid.uuid4().hex]
            broadcast_object_list(run_id)
            runner.message_hub.update_info("run", run_id[0])

    def after_train_epoch(self, runner: Runner) -> None:
        self._count_time(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if not runner.is_training:
            return
        self._count_time(runner)
        last = {"epoch": runner.epoch, **strip_eval_prefix(metrics or {})}
        info, (metric, rule) = runner.message_hub.runtime_info, runner.headline
        metric = next(iter(strip_eval_prefix({metric: 0})))
        best = info.get("result_best")
        if best is None or not _is_as_good(best, last, metric, rule):
            best = last
        runner.message_hub.update_info_dict({"result_last": last, "result_best": best})
        # A resume with nothing left to train only validates: it must not overwrite the finished run's file.
        finished_before = runner.iter == self._first_iteration and _is_finished(
            runner.work_dir, info["run"], runner.epoch
        )
        if is_main_process() and not finished_before:
            result = {
                **run_metadata(runner.cfg, runner.seed, runner.initialized_from, origin=runner.origin),
                "run": info["run"],
                "launch": info.get("launch"),
                "epochs": runner.epoch,
                "max_epochs": runner.max_epochs,
                "steps": runner.iter,
                "max_steps": runner.max_iters,
                "finished": runner.iter >= runner.max_iters,
                "headline": {"metric": metric, "rule": rule},
                "last": last,
                "best": best,
                "wall_time_s": round(info["train_seconds"], 1),
                **self._cost,
                **environment_info(runner.world_size),
            }
            with warn_on_oserror(RESULT_FILE):
                write_result(runner.work_dir, result)

    def _count_time(self, runner: Runner) -> None:
        now = time.perf_counter()
        spent = runner.message_hub.runtime_info.get("train_seconds", 0.0)
        runner.message_hub.update_info("train_seconds", spent + now - self._lap)
        self._lap = now


def strip_eval_prefix(metrics: dict[str, float]) -> dict[str, float]:
    """Remove the prefix ``eval/`` from the names of metrics."""
    return {key.removeprefix("eval/"): value for key, value in metrics.items()}


def _is_as_good(a: dict, b: dict, metric: str, rule: str) -> bool:
    """Return whether metrics ``a`` are at least as good as ``b``; without ``metric``, ``a`` is never as good."""
    if metric not in a:
        return False
    if metric not in b or b[metric] != b[metric]:
        return True
    return a[metric] >= b[metric] if rule == "greater" else a[metric] <= b[metric]


def write_result(folder: str | Path, result: dict) -> None:
    """Write a result to a folder's ``result.json``."""
    write_whole(Path(folder) / RESULT_FILE, f"{json.dumps(result, indent=2, default=str)}\n".encode())


def load_result(path: str | Path) -> dict[str, Any]:
    """Read a ``result.json``.

    Raises:
        OSError: the file is missing, not a regular file, or too large.
        ValueError: the contents are not a dict of plain data.
    """
    result = read_json(read_regular(path, MAX_RESULT_BYTES))
    check_plain(result)
    if not isinstance(result, dict):
        raise ValueError(f"expected a dict, got {type(result).__name__}")
    return result


def read_result(path: str | Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a ``result.json``; raise ``CheckpointError`` if it is invalid or belongs to another run."""
    try:
        result = load_result(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{sanitized(path)} is not a run's {RESULT_FILE}: {sanitized(error)}") from None
    if result.get("run") != checkpoint.run:
        raise CheckpointError(
            f"{sanitized(path)} belongs to another run than {checkpoint.path}: use the file of the checkpoint's run"
        )
    return result


def checkpoint_metrics(result: dict[str, Any], checkpoint: Checkpoint) -> dict[str, float]:
    """Return the metrics that a result lists for a checkpoint's epoch, or for a test of the checkpoint."""
    epoch, rows = checkpoint.meta.get("epoch"), [result.get("best"), result.get("last")]
    rows = [row for row in rows if isinstance(row, dict)]
    if "checkpoint" in result:  # tools/test.py wrote it
        same = Path(str(result["checkpoint"])).name == Path(checkpoint.path).name
        metrics = rows[-1] if rows and same else {}
    else:
        metrics = next((row for row in rows if epoch is not None and row.get("epoch") == epoch), {})
    return numeric_metrics(metrics)


def numeric_metrics(metrics: Any) -> dict[str, float]:
    """Return the numbers among metrics, without the prefix of custom tasks and without the epoch."""
    items = metrics.items() if isinstance(metrics, dict) else ()
    return {key.removeprefix("eval/"): n for key, n in items if type(n) in (int, float) and key != "epoch"}


def find_result(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the ``result.json`` beside a checkpoint, or an empty dict; warn if the file is of another run."""
    path = Path(home(checkpoint.path))
    file = (path if path.is_dir() else path.parent) / RESULT_FILE
    try:
        return read_result(file, checkpoint) if checkpoint.run and path.exists() and file.exists() else {}
    except CheckpointError as error:
        print_log(f"the metrics of {checkpoint.path} are unknown: {error}", "current", logging.WARNING)
        return {}


def published_facts(result: dict[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a result's public facts for a published file: metrics of the checkpoint, command, commit, machine."""
    metrics, keys = checkpoint_metrics(result, checkpoint), ("command", "commit", "device", "versions", "wall_time_s")
    training = {} if "checkpoint" in result else public({key: result[key] for key in keys if key in result})
    return {key: value for key, value in (("metrics", metrics), ("training", training)) if value}


def mark_unfinished(folder: str | Path) -> None:
    """Set ``finished`` to False in a folder's ``result.json``, if the file exists."""
    with suppress(OSError, ValueError):  # the caller raises an error anyway
        write_result(folder, {**load_result(Path(folder) / RESULT_FILE), "finished": False})


def _is_finished(folder: str | Path, run: str, epoch: int) -> bool:
    """Return whether a folder's ``result.json`` belongs to this run, finished at this epoch."""
    try:
        result = load_result(Path(folder) / RESULT_FILE)
    except (OSError, ValueError):
        return False
    return (result.get("run"), result.get("epochs"), result.get("finished")) == (run, epoch, True)


def origin_of(checkpoint: Checkpoint) -> str:
    """Return a checkpoint's run and epoch, which identify it at any path; its path if it has no run or epoch."""
    run, epoch = checkpoint.run, checkpoint.meta.get("epoch")
    return checkpoint.path if run is None or epoch is None else f"epoch {epoch} of run {run}"


def run_metadata(
    cfg: Config,
    seed: int | None,
    initialized_from: str | None,
    frozen: bool | None = None,
    origin: str | None = None,
) -> dict:
    """Return the model, data, config, recipe, seed, command and start checkpoint of a training run or a test.

    Args:
        cfg: the user's config or the resolved config.
        seed: seed of the training.
        initialized_from: the checkpoint that the training started from.
        frozen: whether the backbone was frozen (default: as in the config).
        origin: ``origin_of`` the checkpoint that the training started from (default: ``initialized_from``).
    """
    loader = cfg.get("train_dataloader") or cfg.test_dataloader
    frozen = cfg.model.get("freeze_backbone", False) if frozen is None else frozen
    backbone = cfg.model.get("backbone") or {}
    return {
        "config": Path(cfg.filename).stem if cfg.filename else None,
        "model": model_name(backbone) if backbone else cfg.model.type.lower(),
        "backbone": to_builtin(backbone),
        "dataset": dataset_name(loader.dataset, cfg.get("data_root")),
        "kind": "linear probe" if frozen else "fine-tuning" if initialized_from else "from scratch",
        "initialized_from": initialized_from,
        "global_batch_size": cfg.get("global_batch_size"),
        "recipe": {**describe_recipe(cfg), "initialized_from": origin or initialized_from},
        "seed": seed,
        "command": without_secrets(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
    }


def dataset_name(dataset: dict, data_root: str | None = None) -> str:
    """Return the folder's name for a user's image folders, and the dataset's type for every other dataset.

    Args:
        dataset: config of the dataset.
        data_root: the folder, if ``dataset`` has no ``root``.
    """
    source = dataset.get("source") or dataset
    kind, root = source["type"], source.get("root", data_root)
    reader = DATASETS.get(kind) if isinstance(kind, str) else kind
    if root is None or not (isinstance(reader, type) and issubclass(reader, Source) and reader.named_by_folder):
        return kind
    name = Path(home(root)).resolve().name
    # A folder named like a dataset, such as ImageNet, need not contain that dataset.
    return f"{name} ({kind})" if name in ("", *DATASETS.names()) else name


def describe_recipe(cfg: Config) -> dict:
    """Return the settings that distinguish runs of a model on a dataset, except seeds and the machine."""
    parts = {key: cfg.get(key) for key in RECIPE_PARTS}
    for setting in SETTINGS:
        *above, name = setting.name.split(".")
        value = (cfg if not above else cfg.get(above[0]) or {}).get(name)
        if setting.recipe == "always" or (setting.recipe == "if set" and value):
            parts[name] = value
    data = (cfg.get("train_dataloader") or {}).get("dataset") or {}
    parts["train_transforms"] = data.get("transforms")
    excluded = ("type", "source", "root", "transforms", "max_unreadable")
    if settings := {key: value for key, value in data.items() if key not in excluded}:  # such as views, or a length
        parts["train_data"] = settings
    parts["optim_wrapper"] = {k: v for k, v in (parts["optim_wrapper"] or {}).items() if k != "accumulative_counts"}
    return to_builtin(parts)


def model_name(backbone: dict) -> str:
    """Return 'crate_tiny', or 'crate_192x6x6' (width, depth, heads) for a size without a name."""
    arch = backbone.get("arch", "")
    if isinstance(arch, dict):
        arch = "x".join(str(arch[key]) for key in ("embed_dim", "depth", "num_heads") if key in arch)
    return f"{backbone['type']}_{arch}".lower().rstrip("_")


def model_cost(model: nn.Module) -> dict:
    """Return the numbers of all and of trainable parameters, the multiply-adds per sample, and the image size.

    The multiply-adds are None if the model has no ``example()`` or fvcore cannot trace it.
    """
    backbone, flops = backbone_of(model), None
    spec = None if backbone is None else backbone.input_spec
    try:
        flops = count_complexity(model, model.example()).flops
    except Exception as error:  # a user's model may raise anything in the tracer, which must not end the training
        print_log(f"could not count multiply-adds: {error}", logger="current", level=logging.WARNING)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "flops": flops,
        "img_size": list(spec.size) if spec is not None and spec.is_image else None,
    }


@cache
def code_commit() -> str | None:
    """Return the git commit of crate_mm's clone, with ``-dirty`` if tracked files differ; None without a clone."""
    clone = Path(crate_mm.__file__).resolve().parent.parent
    if not (clone / ".git").exists():  # an installed package may lie inside another project's clone
        return None
    # Explicit paths, because GIT_DIR may name another repository. A lock could make the user's own git commands fail.
    git = ["git", "--no-optional-locks", f"--git-dir={clone / '.git'}", f"--work-tree={clone}"]
    command = [*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def environment_info(processes: int = 1) -> dict:
    """Return the device, number of processes, commit of the code, versions and date."""
    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
        "processes": processes,
        "commit": code_commit(),
        "versions": {
            "crate_mm": crate_mm.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),  # a subclass of str, which checkpoints must not contain
            "torchvision": torchvision.__version__,
            "mmengine": mmengine.__version__,
        },
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def checkpoint_metadata(runner: Runner) -> dict:
    """Return the metadata that make a checkpoint self-contained: model, test transforms, origin, recipe."""
    cfg = runner.cfg
    dataset = (cfg.get("test_dataloader") or cfg.get("val_dataloader") or {}).get("dataset") or {}
    transforms = to_builtin(dataset.get("transforms"))
    return {
        "format": FORMAT,
        "model": cfg.model.to_dict(),
        "test_transforms": transforms if are_transforms(transforms) else None,
        "transfer_from": runner.task.transfer_from,
        "initialized_from": runner.initialized_from,
        "recipe": {**describe_recipe(cfg), "initialized_from": runner.origin},
        "optimizer": optimizer_name(runner.optim_wrapper.optimizer),
        "versions": environment_info()["versions"],
        "processes": runner.world_size,
        "steps_per_epoch": len(runner.train_dataloader),
        "draws": draws_of(runner.train_dataloader.sampler),
    }


def to_builtin(value: Any) -> Any:
    """Convert NumPy scalars and tuples to Python numbers and lists, at any depth."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: to_builtin(inner) for key, inner in value.items()}
    return [to_builtin(inner) for inner in value] if isinstance(value, (list, tuple)) else value
