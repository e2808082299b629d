"""BatchNorm's running statistics with several processes and micro-batches.

A model's other tensors change by optimizer steps only, which are the same on every rank. BatchNorm's running statistics
change in each training forward pass. They therefore depend on how a batch is split among ranks and micro-batches.
"""

import logging

import torch
from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from ...io.log import print_log
from ...registry import HOOKS
from ...torch_private import BatchNorm


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return the BatchNorm layers of a model that have running statistics."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return [module for module in modules if isinstance(module, BatchNorm) and module.track_running_stats]


def sync_batch_norm(model: nn.Module, sync_bn: str | bool | None, device: str) -> tuple[nn.Module, bool]:
    """Prepare a model's BatchNorm layers, if any, for several ranks, and log which samples their statistics cover.

    Args:
        model: the model; its layers are replaced in place.
        sync_bn: 'torch' for SyncBatchNorm, which needs GPUs; False for BatchNorm; None for SyncBatchNorm if there are
            GPUs, because the authors of models with BatchNorm trained with it.
        device: device type of the ranks.

    Returns:
        The model, and whether rank 0's statistics must be broadcast before each step.

    Raises:
        ValueError: ``sync_bn`` requires SyncBatchNorm, but there is no GPU.
    """
    if sync_bn and device != "cuda":
        raise ValueError("sync_bn needs GPUs, but there are none: set sync_bn=False to use rank 0's statistics")
    if not batch_norms(model):
        return model, False
    synced = device == "cuda" and sync_bn is not False
    ranks = "all ranks" if synced else "rank 0 (SyncBatchNorm needs GPUs and sync_bn other than False)"
    message = f"BatchNorm updates its running statistics with each micro-batch of {ranks}"
    print_log(message, "current", logging.INFO)
    return (nn.SyncBatchNorm.convert_sync_batchnorm(model), False) if synced else (model, True)


class StatisticsBackup:
    """Copy of BatchNorm's statistics before a step, restored if the step is skipped.

    A forward pass updates the statistics before its gradients are checked. A single fp16 overflow would stay in the
    running mean permanently.
    """

    def __init__(self) -> None:
        self._copies: list[tuple[Tensor, Tensor]] = []

    def store(self, model: nn.Module) -> None:
        """Copy the statistics of a model."""
        buffers = [buffer for module in batch_norms(model) for buffer in module.buffers()]
        self._copies = [(buffer, buffer.clone()) for buffer in buffers]

    def restore(self, where: Tensor | None = None) -> None:
        """Restore the stored statistics; with ``where``, a bool tensor on their device, only if ``where`` is True."""
        for buffer, before in self._copies:
            buffer.copy_(before if where is None else torch.where(where, before, buffer))


@HOOKS.register_module()
class SameStatistics(Hook):
    """Broadcast rank 0's BatchNorm statistics, which checkpoints store, before each evaluation."""

    priority = "LOW"  # after EMAHook has swapped in the averaged weights

    def before_val_epoch(self, runner: Runner) -> None:
        for module in batch_norms(runner.model):
            for buffer in module.buffers():
                broadcast(buffer, 0)

    before_test_epoch = before_val_epoch
