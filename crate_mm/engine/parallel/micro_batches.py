"""Choose as few micro-batches as GPU memory allows, if the config does not set ``max_batch_per_device``."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ...config import BatchPlan
from ...config.batch import count_micro_batches, nearest_even
from ...models.tasks.base import Task
from ...registry import LAYERS
from ..loop import TrainLoop
from ..optim.wrapper import OptimWrapper
from .batch_norm import batch_norms

PROBES = (4, 8)  # batch sizes: small enough for any GPU; the difference gives the memory of one sample
MEMORY_FRACTION = 0.85  # of the free memory; the rest is for fragmentation and other libraries


def fewest_micro_batches(
    batch_sizes: tuple[int, int], bytes_of: Callable[[int], int], free: int
) -> tuple[int, int, float]:
    """Return the smallest number of micro-batches that each fit into memory, see ``count_micro_batches``.

    Args:
        batch_sizes: the smallest and the largest per-rank batch size.
        bytes_of: returns the peak memory of a forward and backward pass for a batch size, in bytes.
        free: free memory in bytes.

    Returns:
        The number of micro-batches, the bytes of the largest micro-batch, and the bytes per sample.

    Raises:
        ValueError: not even one sample fits, or only one fits and per-rank batch sizes differ.
    """
    bytes_of(PROBES[0])  # the first pass also allocates the workspaces of libraries
    few, more = (bytes_of(size) for size in PROBES)
    per_sample = max(more - few, 1) / (PROBES[1] - PROBES[0])
    fixed = max(few - PROBES[0] * per_sample, 0)
    fit = int((free - fixed) // per_sample)
    number = count_micro_batches(batch_sizes, fit) if fit >= 1 else None
    if not number:
        subject, size = ("one sample needs", 1) if fit < 1 else ("two samples (per-rank batch sizes differ) need", 2)
        raise ValueError(
            f"{subject} {fixed + size * per_sample:.3g} bytes of GPU memory in a step, but only {free:.3g} are free: "
            "use a smaller model or set activation_checkpointing=True"
        )
    return number, round(fixed + math.ceil(batch_sizes[1] / number) * per_sample), per_sample


def is_split_invariant(task: Task) -> bool:
    """Return whether a step does not depend on the split of its batch: no mixing of samples and no BatchNorm."""
    return not task.mixes_samples and not batch_norms(task)


def check_weights(plan: BatchPlan, task: Task, loop: object, wrapper: object) -> None:
    """Raise ``ValueError`` unless the task, the loop and the OptimWrapper support a step's micro-batch sizes.

    Args:
        plan: the batch plan.
        task: the task, which may mix the samples of a micro-batch.
        loop, wrapper: training loop and OptimWrapper. If micro-batches differ in size, both must weight losses.
    """
    smallest, largest = plan.micro_batch_sizes
    unweighted = [part for part, kind in ((loop, TrainLoop), (wrapper, OptimWrapper)) if not isinstance(part, kind)]
    if unweighted and type(task).count is not Task.count and plan.world_size * plan.micro_batches > 1:
        raise ValueError(
            f"global_batch_size {plan}: {type(unweighted[0]).__name__} does not weight losses by the count of "
            f"{type(task).__name__}: use crate_mm's TrainLoop and OptimWrapper"
        )
    if unweighted and type(task).before_step is not Task.before_step:
        raise ValueError(
            f"{type(unweighted[0]).__name__} does not call the before_step of {type(task).__name__}: use crate_mm's "
            "TrainLoop and OptimWrapper"
        )
    if smallest < largest and unweighted:
        even = nearest_even(plan.global_batch_size, plan.world_size * plan.micro_batches)
        raise ValueError(
            f"global_batch_size {plan}: {type(unweighted[0]).__name__} does not weight losses by their samples, as "
            f"unequal micro-batches require: use crate_mm's TrainLoop and OptimWrapper, or set {even}"
        )
    if smallest == 1 and task.mixes_samples:  # otherwise the step fails on some ranks, and the others hang
        subject = "some hold" if largest > 1 else "each holds"
        raise ValueError(
            f"global_batch_size {plan}: batch_augments mixes each image with another of its micro-batch, and {subject} "
            "one image: set a larger global_batch_size or max_batch_per_device"
        )


def peak_bytes(task: Task, batch: dict, dtype: str) -> int:
    """Return the peak GPU memory that a forward and backward pass adds, gradients included, in bytes.

    The task's gradients are cleared.
    """
    device = next(task.parameters()).device
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32"):
        losses = task(**task.data_preprocessor(batch, True), mode="loss")
        loss, _ = task.parse_losses(losses)
    loss.backward()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    task.zero_grad(set_to_none=True)
    return peak


def free_bytes(model: nn.Module) -> int:
    """Return the GPU memory that is free for forward and backward passes, in bytes.

    Four times the size of the trained parameters is reserved: twice for the optimizer state, once for DDP's gradient
    buckets and once for averaged weights.
    """
    device = next(model.parameters()).device
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return int(MEMORY_FRACTION * (free - 4 * trained))


@contextmanager
def as_of_many_samples(task: nn.Module) -> Iterator[None]:
    """Compute small batches with the operations of large ones.

    ISTA stores more per token for a small batch. The difference between a small and a larger batch would therefore
    underestimate the memory per sample.
    """
    steps = [module for module in task.modules() if isinstance(module, LAYERS.get("ISTA"))]
    before = [step.many_tokens for step in steps]
    try:
        for step in steps:
            step.many_tokens = 0
        yield
    finally:
        for step, tokens in zip(steps, before):
            step.many_tokens = tokens


def probe_memory(
    task: Task, batch_of: Callable[[int], dict], batch_sizes: tuple[int, int], dtype: str
) -> tuple[int, str]:
    """Measure the memory of forward and backward passes on this GPU and choose the number of micro-batches.

    Args:
        task: the task, on the GPU.
        batch_of: returns a loader's batch of a given size.
        batch_sizes: as for ``fewest_micro_batches``.
        dtype: dtype of training.

    Returns:
        The number of micro-batches, and a message for the log.

    Raises:
        ValueError: as ``fewest_micro_batches``.
    """
    task.train()
    # Eager blocks need more memory than compiled ones, and no compile time.
    with as_of_many_samples(task), torch.compiler.set_stance("force_eager"):
        free = free_bytes(task)
        number, peak, per_sample = fewest_micro_batches(
            batch_sizes, lambda size: peak_bytes(task, batch_of(size), dtype), free
        )
    torch.cuda.empty_cache()
    return number, describe_split(batch_sizes[1], number, peak, per_sample, free)


def describe_split(batch_size: int, number: int, peak: int, per_sample: float, free: int) -> str:
    """Return a message about the chosen split and the number of samples that would fit at once.

    Args:
        batch_size: the largest per-rank batch size.
        number, peak, per_sample: as ``fewest_micro_batches`` returns them.
        free: free memory in bytes.
    """
    size = math.ceil(batch_size / number)
    fit = size + int((free - peak) // per_sample)
    return (
        f"max_batch_per_device is not set: the {batch_size} samples of a device are split into {number} micro-batch"
        f"{'es' if number > 1 else ''} of {size}, which need about {peak / 1e9:.1f} of {free / 1e9:.1f} GB free "
        f"memory, {per_sample / 1e6:.1f} MB per sample; about {fit} samples fit at once"
    )
