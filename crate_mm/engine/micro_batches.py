"""Into how many micro-batches a GPU's batch is split, where the config does not say: as few as its memory allows."""

from collections.abc import Callable

import torch
from torch import nn

from ..models.tasks.base import Task
from .statistics import batch_norms

PROBES = (4, 8)  # samples: small enough for any GPU, and their difference is what a sample takes
SHARE = 0.85  # of the memory that is left, for what fragments and what other libraries take


def find_micro_batches(per_device: int, bytes_of: Callable[[int], int], free: int) -> tuple[int, int, float]:
    """The fewest equal micro-batches of which each fits.

    Args:
        per_device: the samples that a device takes in a step.
        bytes_of: the bytes that a forward and a backward pass of so many samples take at their peak.
        free: bytes that there are for it.

    Returns:
        How many micro-batches; the bytes that such a one takes; the bytes that a sample takes.

    Raises:
        ValueError: not even one sample fits.
    """
    bytes_of(PROBES[0])  # the first pass also makes the room that libraries keep for themselves
    few, more = (bytes_of(count) for count in PROBES)
    each = max(more - few, 1) / (PROBES[1] - PROBES[0])
    fixed = max(few - PROBES[0] * each, 0)
    parts = next(
        (n for n in range(1, per_device + 1) if not per_device % n and fixed + per_device / n * each <= free), 0
    )
    if not parts:
        raise ValueError(
            f"a sample takes {fixed + each:.3g} bytes of this GPU's memory in a step, and {free:.3g} are free: take a "
            "smaller model or activation_checkpointing=True"
        )
    return parts, round(fixed + per_device / parts * each), each


def splits_alike(task: Task) -> bool:
    """Whether a step is the same however its batch is split: not if samples are mixed, or BatchNorm counts them."""
    return not task.mixes_samples and not batch_norms(task)


def peak_bytes(task: Task, batch: dict, dtype: str) -> int:
    """What a forward and a backward pass of a batch take of the GPU's memory beyond what is taken already, gradients
    included. The task's gradients are cleared."""
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
    """What is free of this GPU's memory for passes, when an optimizer, its gradients' buckets and an average have come.

    Each is counted as the trained parameters twice, once and once.
    """
    device = next(model.parameters()).device
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return int(SHARE * (free - 4 * trained))


def probe(task: Task, batch_of: Callable[[int], dict], per_device: int, dtype: str) -> tuple[int, str]:
    """Measure on this GPU, and decide.

    Args:
        task: on the GPU, as it is trained.
        batch_of: a loader's batch of so many samples.
        per_device: as for ``find_micro_batches``.
        dtype: that training runs in.

    Returns:
        How many micro-batches, and a sentence that says so.

    Raises:
        ValueError: as ``find_micro_batches``.
    """
    task.train()
    with torch.compiler.set_stance("force_eager"):  # which takes more memory than compiled blocks, and no time
        free = free_bytes(task)
        parts, taken, each = find_micro_batches(per_device, lambda n: peak_bytes(task, batch_of(n), dtype), free)
    torch.cuda.empty_cache()
    return parts, (
        f"max_batch_per_device is not set: the {per_device} samples of a device go through in {parts} part"
        f"{'s' if parts > 1 else ''} of {per_device // parts}, which take about {taken / 1e9:.1f} of the "
        f"{free / 1e9:.1f} GB that are free, {each / 1e6:.1f} MB a sample"
    )
