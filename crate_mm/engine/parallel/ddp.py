"""Wrap a model in PyTorch's DistributedDataParallel with the options of a config."""

import inspect

import torch
from mmengine.device import get_device
from mmengine.model import MMDistributedDataParallel
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from ...registry import suggest
from .batch_norm import sync_batch_norm

COMPRESS = {"bf16": bf16_compress_hook, "fp16": fp16_compress_hook}
OURS = {"module", "device_ids", "output_device", "process_group", "device_mesh", "find_unused_parameters"}


def share_model(model: nn.Module, cfg: dict) -> MMDistributedDataParallel:
    """Wrap a model for this rank.

    Args:
        model: the task.
        cfg: a resolved config; its ``ddp``, ``sync_bn`` and ``find_unused_parameters`` are read.

    Raises:
        ValueError: ``ddp`` has an option that is unknown to DistributedDataParallel, or that other settings determine.
    """
    options = dict(cfg.get("ddp") or {})
    compress = options.pop("compress", None)
    known = set(inspect.signature(DistributedDataParallel).parameters) - OURS
    unknown = next((name for name in options if name not in known), None)
    if unknown in OURS:
        raise ValueError(f"ddp.{unknown} cannot be set: other settings determine it")
    if unknown:
        raise ValueError(f"ddp has no option {unknown!r}: {suggest(unknown, sorted(known | {'compress'}))}")
    device = get_device()
    device_ids = [torch.cuda.current_device()] if device == "cuda" else None
    # BatchNorm's statistics are the only buffers that training changes.
    model, buffers_change = sync_batch_norm(model, cfg.get("sync_bn"), device)
    # PyTorch has renamed broadcast_buffers to forward_sync_buffers.
    options.setdefault(
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers", buffers_change
    )
    unused = cfg.get("find_unused_parameters", False)
    shared = MMDistributedDataParallel(
        module=model.to(device), device_ids=device_ids, find_unused_parameters=unused, **options
    )
    if compress:
        shared.register_comm_hook(None, COMPRESS[compress])
    return shared
