"""Into how many micro-batches a GPU's batch is split, where the config does not say: as few as its memory allows."""

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

PROBES = (4, 8)  # samples: small enough for any GPU, and their difference is what a sample takes
SHARE = 0.85  # of the memory that is left, for what fragments and what other libraries take


def fewest_micro_batches(shares: tuple[int, int], bytes_of: Callable[[int], int], free: int) -> tuple[int, int, float]:
    """The fewest micro-batches of which each fits, see ``count_micro_batches``.

    Args:
        shares: the samples that a device takes in a step, at least and at most.
        bytes_of: the bytes that a forward and a backward pass of so many samples take at their peak.
        free: bytes that there are for it.

    Returns:
        How many micro-batches; the bytes that the largest one takes; the bytes that a sample takes.

    Raises:
        ValueError: not even one sample fits, or only one where the shares differ.
    """
    bytes_of(PROBES[0])  # the first pass also makes the room that libraries keep for themselves
    few, more = (bytes_of(count) for count in PROBES)
    each = max(more - few, 1) / (PROBES[1] - PROBES[0])
    fixed = max(few - PROBES[0] * each, 0)
    fit = int((free - fixed) // each)
    parts = count_micro_batches(shares, fit) if fit >= 1 else None
    if not parts:
        what, count = ("a sample takes", 1) if fit < 1 else ("two samples, as shares that differ need them, take", 2)
        raise ValueError(
            f"{what} {fixed + count * each:.3g} bytes of this GPU's memory in a step, and {free:.3g} are free: take a "
            "smaller model or activation_checkpointing=True"
        )
    return parts, round(fixed + math.ceil(shares[1] / parts) * each), each


def is_split_invariant(task: Task) -> bool:
    """Whether a step is the same however its batch is split: not if samples are mixed, or BatchNorm counts them."""
    return not task.mixes_samples and not batch_norms(task)


def check_weights(plan: BatchPlan, task: Task, loop: object, wrapper: object) -> None:
    """Raise ``ValueError`` unless a step's micro-batches can be of the sizes that they have.

    Args:
        plan: of the step.
        task: which may mix the samples of a micro-batch.
        loop, wrapper: of the training. Where the micro-batches differ, both must weight their losses.
    """
    least, most = plan.micro_batch_sizes
    others = [part for part, kind in ((loop, TrainLoop), (wrapper, OptimWrapper)) if not isinstance(part, kind)]
    if others and type(task).count is not Task.count and plan.world_size * plan.micro_batches > 1:
        raise ValueError(
            f"global_batch_size {plan}: {type(others[0]).__name__} does not weight losses by what "
            f"{type(task).__name__} counts: use crate_mm's TrainLoop and OptimWrapper"
        )
    if least < most and others:
        raise ValueError(
            f"global_batch_size {plan}: {type(others[0]).__name__} does not weight losses by their samples, as such a "
            f"batch needs it; with it, set {nearest_even(plan.global_batch_size, plan.world_size * plan.micro_batches)}"
        )
    if least == 1 and task.mixes_samples:  # else a step would fail, or some processes, for which others wait
        which = "some hold" if most > 1 else "each holds"
        raise ValueError(
            f"global_batch_size {plan}: batch_augments mixes each image with another of its micro-batch, and {which} "
            "one image: set a larger global_batch_size or max_batch_per_device"
        )


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


@contextmanager
def as_of_many_samples(task: nn.Module) -> Iterator[None]:
    """Let small batches be computed as large ones are: ISTA keeps more for a token of a small batch, so that the bytes
    of a sample would come out too small, as the difference between a small batch and a large one."""
    steps = [module for module in task.modules() if isinstance(module, LAYERS.get("ISTA"))]
    before = [step.many_tokens for step in steps]
    try:
        for step in steps:
            step.many_tokens = 0
        yield
    finally:
        for step, tokens in zip(steps, before):
            step.many_tokens = tokens


def probe_memory(task: Task, batch_of: Callable[[int], dict], shares: tuple[int, int], dtype: str) -> tuple[int, str]:
    """Measure on this GPU, and decide.

    Args:
        task: on the GPU, as it is trained.
        batch_of: a loader's batch of so many samples.
        shares: as for ``fewest_micro_batches``.
        dtype: that training runs in.

    Returns:
        How many micro-batches, and a sentence that says so.

    Raises:
        ValueError: as ``fewest_micro_batches``.
    """
    task.train()
    eager = torch.compiler.set_stance("force_eager")  # which takes more memory than compiled blocks, and no time
    with as_of_many_samples(task), eager:
        free = free_bytes(task)
        parts, taken, each = fewest_micro_batches(shares, lambda n: peak_bytes(task, batch_of(n), dtype), free)
    torch.cuda.empty_cache()
    return parts, describe_split(shares[1], parts, taken, each, free)


def describe_split(share: int, parts: int, taken: int, each: float, free: int) -> str:
    """What is chosen, and how many samples would fit at once.

    Args:
        share: the samples of a device in a step, at most.
        parts, taken, each: as ``fewest_micro_batches`` returns them.
        free: bytes that there are.
    """
    size = math.ceil(share / parts)
    return (
        f"max_batch_per_device is not set: the {share} samples of a device go through in {parts} part"
        f"{'s' if parts > 1 else ''} of {size}, which take about {taken / 1e9:.1f} of the {free / 1e9:.1f} GB that are "
        f"free, {each / 1e6:.1f} MB a sample; the most that fit at once are about {size + int((free - taken) // each)}"
    )
