"""What a run leaves behind: one JSON that says what was trained on what, how, and what came out."""

import json
import logging
import platform
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import mmengine
import torch
import torchvision
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

import crate_mm

from ..analysis.complexity import count_complexity
from ..registry import HOOKS
from .checkpoint import AtomicBackend
from .logs import survive_full_disk

RESULT_FILE = "result.json"


@HOOKS.register_module()
class ResultFile(Hook):
    """Write ``result.json`` into the work folder after each validation, so that a run that is killed has one too.

    ``last`` are the figures of the last validation, ``best`` those of the best one by ``save_best``'s metric. The
    wall time counts training and validation, over all resumes.
    """

    priority = "ABOVE_NORMAL"  # before the checkpoint, which keeps the time and the figures

    def before_train(self, runner: Runner) -> None:
        self._lap = time.perf_counter()
        self._cost = describe_cost(getattr(runner.model, "module", runner.model)) if is_main_process() else {}

    def after_train_epoch(self, runner: Runner) -> None:
        self._count_time(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._count_time(runner)
        figures = {key.removeprefix("eval/"): value for key, value in (metrics or {}).items()}
        last = {"epoch": runner.epoch, **figures}
        info = runner.message_hub.runtime_info
        best = info.get("result_best")
        if best is None or figures.get("top1", 0) > best.get("top1", 0):
            best = last
        runner.message_hub.update_info_dict({"result_last": last, "result_best": best})
        if is_main_process():
            result = {
                **describe_run(runner.cfg, runner.seed, runner.initialized_from),
                "epochs": runner.epoch,
                "max_epochs": runner.max_epochs,
                "finished": runner.epoch >= runner.max_epochs,
                "last": last,
                "best": best,
                "wall_time_s": round(info["train_seconds"], 1),
                **self._cost,
                **describe_machine(runner.world_size),
            }
            with survive_full_disk(RESULT_FILE):
                write_result(runner.work_dir, result)

    def _count_time(self, runner: Runner) -> None:
        now = time.perf_counter()
        spent = runner.message_hub.runtime_info.get("train_seconds", 0.0)
        runner.message_hub.update_info("train_seconds", spent + now - self._lap)
        self._lap = now


def write_result(folder: str | Path, result: dict) -> None:
    """Write a result to a folder's ``result.json``."""
    AtomicBackend().put(f"{json.dumps(result, indent=2)}\n".encode(), Path(folder) / RESULT_FILE)


def describe_run(cfg: Config, seed: int | None, initialized_from: str | None, frozen: bool | None = None) -> dict:
    """What is trained or tested on what, by which config, seed and command, from which checkpoint.

    Args:
        cfg: the user's config or the prepared one.
        seed: of the training.
        initialized_from: the checkpoint that the training started from.
        frozen: whether the backbone was frozen; as the config has it if not given.
    """
    loader = cfg.get("train_dataloader") or cfg.test_dataloader
    frozen = cfg.model.get("freeze_backbone", False) if frozen is None else frozen
    return {
        "config": Path(cfg.filename).stem if cfg.filename else None,
        "model": model_name(cfg.model.backbone),
        "backbone": _plain(cfg.model.backbone),
        "dataset": loader.dataset.source.type,
        "kind": "linear probe" if frozen else "fine-tuning" if initialized_from else "from scratch",
        "initialized_from": initialized_from,
        "global_batch_size": cfg.get("global_batch_size"),
        "seed": seed,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def model_name(backbone: dict) -> str:
    """'crate_tiny', or 'crate_192x6x6' (width, depth, heads) for a size without a name."""
    arch = backbone.get("arch", "")
    if isinstance(arch, dict):
        arch = "x".join(str(arch[key]) for key in ("embed_dim", "depth", "num_heads") if key in arch)
    return f"{backbone['type']}_{arch}".lower().rstrip("_")


def describe_cost(model: nn.Module) -> dict:
    """Parameters, those that train, and multiply-adds for one image.

    The last is None for a model that does not tell its image size, or of a kind that fvcore cannot trace.
    """
    size, flops = getattr(getattr(model, "backbone", None), "img_size", None), None
    if size is not None:
        image = torch.zeros(1, model.in_channels, *size, device=next(model.parameters()).device)
        try:
            flops = count_complexity(model, image).flops
        except Exception as error:  # a report may not end a training, whatever a user's model does to the tracer
            print_log(f"multiply-adds are not counted: {error}", logger="current", level=logging.WARNING)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "flops": flops,
        "img_size": list(size) if size else None,
    }


def describe_machine(processes: int = 1) -> dict:
    """Device, number of processes, versions and the time."""
    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
        "processes": processes,
        "versions": {
            "crate_mm": crate_mm.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),  # a class of its own, which checkpoints may not hold
            "torchvision": torchvision.__version__,
            "mmengine": mmengine.__version__,
        },
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
