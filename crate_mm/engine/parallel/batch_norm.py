"""BatchNorm in a run of several processes: whose samples its statistics are of, and that all evaluate with the same.

A model's other numbers change by the optimizer's steps alone, which are the same in every process. BatchNorm's running
statistics change in each forward pass of training, by the samples of that pass: a batch that is split differently, over
processes or into micro-batches, gives other statistics.
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
    """The BatchNorm layers of a model that keep statistics."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return [module for module in modules if isinstance(module, BatchNorm) and module.track_running_stats]


def sync_batch_norm(model: nn.Module, sync_bn: str | bool | None, device: str) -> tuple[nn.Module, bool]:
    """Prepare a model's BatchNorm, where it has such, for several processes, and say in the log what it does.

    Args:
        model: whose layers are replaced in place.
        sync_bn: the config's: 'torch' for SyncBatchNorm, which needs GPUs; False for none; None for it where there are
            GPUs, as the models that have BatchNorm were trained so.
        device: the processes'.

    Returns:
        The model, and whether process 0's statistics must be given to the others before each step.

    Raises:
        ValueError: SyncBatchNorm is asked for without GPUs.
    """
    found = batch_norms(model)
    if sync_bn and device != "cuda":
        raise ValueError("sync_bn needs GPUs, and there are none: sync_bn=False takes process 0's statistics")
    if not found:
        return model, False
    synced = device == "cuda" and sync_bn is not False
    of = "of all processes" if synced else "of process 0 (SyncBatchNorm needs GPUs and sync_bn other than False)"
    print_log(f"BatchNorm's running statistics are {of}, micro-batch by micro-batch", "current", logging.INFO)
    return (nn.SyncBatchNorm.convert_sync_batchnorm(model), False) if synced else (model, True)


class KeptStatistics:
    """BatchNorm's statistics as they were before a step, to be put back if the step is skipped.

    A forward pass changes them before it is known whether its gradients are finite. One number of fp16 that is not
    would stay in the running mean for good.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor]] = []

    def store(self, model: nn.Module) -> None:
        """Take note of the statistics of a model."""
        buffers = [buffer for module in batch_norms(model) for buffer in module.buffers()]
        self._kept = [(buffer, buffer.clone()) for buffer in buffers]

    def restore(self, where: Tensor | None = None) -> None:
        """Let the statistics be what they were when they were kept, if ``where``, a bool on their device, says so."""
        for buffer, before in self._kept:
            buffer.copy_(before if where is None else torch.where(where, before, buffer))


@HOOKS.register_module()
class SameStatistics(Hook):
    """Before an evaluation, give process 0's BatchNorm statistics, which are those that are saved, to the others."""

    priority = "LOW"  # after an average of the weights has been put in the model's place

    def before_val_epoch(self, runner: Runner) -> None:
        for module in batch_norms(runner.model):
            for buffer in module.buffers():
                broadcast(buffer, 0)

    before_test_epoch = before_val_epoch
