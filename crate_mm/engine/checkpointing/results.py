"""What a run leaves behind: one JSON that says what was trained on what, how, and what came out."""

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
from ...checkpoints import Checkpoint
from ...checkpoints.validate import FORMAT, are_transforms
from ...datasets.base import Source, draws_of
from ...io.files import home, write_whole
from ...io.log import print_log
from ...io.untrusted import check_plain, read_json, read_regular, without_secrets
from ...models.tasks.base import backbone_of
from ...registry import DATASETS, HOOKS
from ..logs import warn_on_oserror
from ..optim.sharded import optimizer_name

RESULT_FILE = "result.json"
MOST_BYTES = 2**24  # of a result.json


@HOOKS.register_module()
class ResultFile(Hook):
    """Write ``result.json`` into the work folder after each validation of a training, so that a run that is killed has
    one too.

    ``last`` are the figures of the last validation, ``best`` those of the best one by the headline: ``save_best``'s
    metric, or the task's. The wall time counts training and validation, over all resumes. ``run`` names the run, in
    its checkpoints and in what is published of them too.
    """

    priority = "ABOVE_NORMAL"  # before the checkpoint, which keeps the time and the figures

    def __init__(self) -> None:
        self._lap = time.perf_counter()
        self._cost: dict = {}
        self._first_iteration = 0  # of this start of the run

    def before_train(self, runner: Runner) -> None:
        self._lap = time.perf_counter()
        self._first_iteration = runner.iter
        if is_main_process():
            self._cost = model_cost(runner.task)
            code_commit()  # of the code that trains, which may be changed before the first validation
        if "run" not in runner.message_hub.runtime_info:
            name = [uuid.uuid4().hex]
            broadcast_object_list(name)
            runner.message_hub.update_info("run", name[0])

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
        # A resume with nothing left to train validates its checkpoint; the file of the run that trained it stays.
        stays = runner.iter == self._first_iteration and _is_finished(runner.work_dir, info["run"], runner.epoch)
        if is_main_process() and not stays:
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
    """Metrics without the prefix that those of a task's own evaluation have."""
    return {key.removeprefix("eval/"): value for key, value in metrics.items()}


def _is_as_good(one: dict, other: dict, metric: str, rule: str) -> bool:
    """Whether the first figures are as good as the others, by a metric; those that lack it are not."""
    if metric not in one:
        return False
    if metric not in other or other[metric] != other[metric]:
        return True
    return one[metric] >= other[metric] if rule == "greater" else one[metric] <= other[metric]


def write_result(folder: str | Path, result: dict) -> None:
    """Write a result to a folder's ``result.json``."""
    write_whole(Path(folder) / RESULT_FILE, f"{json.dumps(result, indent=2, default=str)}\n".encode())


def load_result(path: str | Path) -> dict[str, Any]:
    """Read a ``result.json``.

    Raises:
        OSError: it is missing, no regular file, or too large.
        ValueError: it is not a dict of plain data.
    """
    result = read_json(read_regular(path, MOST_BYTES))
    check_plain(result)
    if not isinstance(result, dict):
        raise ValueError(f"it holds {type(result).__name__}, not a dict")
    return result


def mark_unfinished(folder: str | Path) -> None:
    """Say in a folder's ``result.json`` that its run is not finished, if the file is there."""
    with suppress(OSError, ValueError):  # the run ends with an error in any case
        write_result(folder, {**load_result(Path(folder) / RESULT_FILE), "finished": False})


def _is_finished(folder: str | Path, run: str, epoch: int) -> bool:
    """Whether a folder's ``result.json`` is of a run that has finished with this epoch."""
    try:
        result = load_result(Path(folder) / RESULT_FILE)
    except (OSError, ValueError):
        return False
    return (result.get("run"), result.get("epochs"), result.get("finished")) == (run, epoch, True)


def origin_of(checkpoint: Checkpoint) -> str:
    """Return what identifies a checkpoint, wherever its file lies: its run and epoch, or the path where it has none."""
    run, epoch = checkpoint.run, checkpoint.meta.get("epoch")
    return checkpoint.path if run is None or epoch is None else f"epoch {epoch} of run {run}"


def run_metadata(
    cfg: Config,
    seed: int | None,
    initialized_from: str | None,
    frozen: bool | None = None,
    origin: str | None = None,
) -> dict:
    """What is trained or tested on what, by which config, recipe, seed and command, from which checkpoint.

    Args:
        cfg: the user's config or the prepared one.
        seed: of the training.
        initialized_from: the checkpoint that the training started from.
        frozen: whether the backbone was frozen; as the config has it if not given.
        origin: that checkpoint by its run and epoch, see ``origin_of``; ``initialized_from`` if not given.
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
    """Return the name of a dataset's folder for image folders of one's own, and its type for every other dataset.

    Args:
        dataset: its config.
        data_root: the folder, where ``dataset`` has no ``root``.
    """
    source = dataset.get("source") or dataset
    kind, root = source["type"], source.get("root", data_root)
    reader = DATASETS.get(kind) if isinstance(kind, str) else kind
    if root is None or not (isinstance(reader, type) and issubclass(reader, Source) and reader.named_by_folder):
        return kind
    name = Path(home(root)).resolve().name
    # A folder that is called as a dataset is, such as ImageNet, is not that dataset.
    return f"{name} ({kind})" if name in ("", *DATASETS.names()) else name


def describe_recipe(cfg: Config) -> dict:
    """All that makes runs of a model on a dataset different, but their seeds and where they ran."""
    parts = {key: cfg.get(key) for key in ("model", "optim_wrapper", "param_scheduler", "global_batch_size")}
    parts["auto_scale_lr"] = cfg.get("auto_scale_lr")
    length = cfg.get("train_cfg") or {}
    parts |= {"ema_momentum": cfg.get("ema_momentum"), "max_epochs": length.get("max_epochs")}
    parts |= {"max_steps": length.max_steps} if length.get("max_steps") else {}
    others = ("residual_dtype", "val_dtype", "tf32", "ddp", "transfer_from")
    parts |= {key: cfg.get(key) for key in others if cfg.get(key)}
    data = (cfg.get("train_dataloader") or {}).get("dataset") or {}
    parts["train_transforms"] = data.get("transforms")
    elsewhere = ("type", "source", "root", "transforms", "max_unreadable")
    if settings := {key: value for key, value in data.items() if key not in elsewhere}:  # such as views, or a length
        parts["train_data"] = settings
    parts["optim_wrapper"] = {k: v for k, v in (parts["optim_wrapper"] or {}).items() if k != "accumulative_counts"}
    return to_builtin(parts)


def model_name(backbone: dict) -> str:
    """'crate_tiny', or 'crate_192x6x6' (width, depth, heads) for a size without a name."""
    arch = backbone.get("arch", "")
    if isinstance(arch, dict):
        arch = "x".join(str(arch[key]) for key in ("embed_dim", "depth", "num_heads") if key in arch)
    return f"{backbone['type']}_{arch}".lower().rstrip("_")


def model_cost(model: nn.Module) -> dict:
    """Parameters, those that train, and multiply-adds for one sample.

    The last is None for a model that gives no example, or of a kind that fvcore cannot trace.
    """
    backbone, flops = backbone_of(model), None
    spec = None if backbone is None else backbone.input_spec
    try:
        flops = count_complexity(model, model.example()).flops
    except Exception as error:  # a report may not end a training, whatever a user's model does to the tracer
        print_log(f"multiply-adds are not counted: {error}", logger="current", level=logging.WARNING)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "flops": flops,
        "img_size": list(spec.size) if spec is not None and spec.is_image else None,
    }


@cache
def code_commit() -> str | None:
    """Return the git commit of crate_mm's clone, with ``-dirty`` where tracked files differ; None without one."""
    clone = Path(crate_mm.__file__).resolve().parent.parent
    if not (clone / ".git").exists():  # an installed package may lie inside another project's clone
        return None
    # Named in full, as GIT_DIR in the environment may name another repository; a lock would be in the user's way.
    git = ["git", "--no-optional-locks", f"--git-dir={clone / '.git'}", f"--work-tree={clone}"]
    command = [*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def environment_info(processes: int = 1) -> dict:
    """Device, number of processes, commit of the code, versions and the time."""
    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
        "processes": processes,
        "commit": code_commit(),
        "versions": {
            "crate_mm": crate_mm.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),  # a class of its own, which checkpoints may not hold
            "torchvision": torchvision.__version__,
            "mmengine": mmengine.__version__,
        },
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def checkpoint_metadata(runner: Runner) -> dict:
    """What a checkpoint of a run says of itself, so that using it needs nothing else: the model, the transforms of its
    test, where it comes from, and what a resume is compared with."""
    cfg = runner.cfg
    tested = (cfg.get("test_dataloader") or cfg.get("val_dataloader") or {}).get("dataset") or {}
    return {
        "format": FORMAT,
        "model": cfg.model.to_dict(),
        "test_transforms": transforms if are_transforms(transforms := to_builtin(tested.get("transforms"))) else None,
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
    """NumPy's numbers, and tuples, as Python's own numbers and lists, at any depth."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: to_builtin(inner) for key, inner in value.items()}
    return [to_builtin(inner) for inner in value] if isinstance(value, (list, tuple)) else value
