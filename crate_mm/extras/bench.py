"""Measure the speed and memory of a config's model on this machine: training steps and inference.

The images are random and on the device: loading is not measured.
"""

import copy
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import Tensor

from ..config import resolve_config
from ..engine.optim.wrapper import amp_dtype, amp_optim_wrapper
from ..engine.parallel.blocks import prepare_blocks
from ..models.tasks.base import Task, image_shape, task_of
from ..registry import MODELS, SCOPE

WARM_UP, MIN_STEPS, MAX_STEPS = 3, 5, 1000


class BenchResult(NamedTuple):
    """Result of a measurement. The field names are also the keys of the tool's JSON file.

    Attributes:
        what: 'training' or 'inference'.
        batch: batch size.
        steps: number of timed steps, after ``WARM_UP`` untimed ones.
        seconds: median time of a step.
        least: time of the fastest step.
        most: time of the slowest step.
        first: time of the first step, compilation included.
        memory: peak memory in bytes, of PyTorch's tensors on a GPU, of the process on a CPU; None if unknown.
    """

    what: str
    batch: int
    steps: int
    seconds: float
    least: float
    most: float
    first: float
    memory: int | None

    @property
    def images_per_second(self) -> float:
        """Images per second at the median step time."""
        return self.batch / self.seconds


def bench(cfg: Config, what: str, batch: int = 32, seconds: float = 10.0, amp: bool = False) -> BenchResult:
    """Measure steps of a config's model on one device.

    A training step is batch augmentation, forward, backward and optimizer step, as in a run. An inference step is
    normalization and forward. Blocks are compiled as in a run.

    Args:
        cfg: a user's config.
        what: 'training' or 'inference'.
        batch: batch size.
        seconds: duration of the measurement, with at least ``MIN_STEPS`` steps.
        amp: use mixed precision, as the tools do with ``--amp``.

    Raises:
        ValueError: ``what`` is unknown, the config does not build, or the size of the model's images is unknown.
    """
    if what not in ("training", "inference"):
        raise ValueError(f"unknown measurement {what!r}: choose training, inference")
    resolved = resolve_config(cfg, world_size=1)
    task = task_of(MODELS.build(resolved.model)).to(get_device())
    recompute = resolved.activation_checkpointing is True
    prepare_blocks(task, resolved.compile_blocks, recompute, resolved.residual_dtype if amp else None)
    step = _training(task, resolved, batch, amp) if what == "training" else _inference(task, batch, amp)
    has_peak = reset_peak()
    first = seconds_of(step)
    for _ in range(WARM_UP - 1):
        step()
    times: list[float] = []
    while len(times) < MIN_STEPS or (sum(times) < seconds and len(times) < MAX_STEPS):
        times.append(seconds_of(step))
    peak = peak_bytes() if has_peak else None
    return BenchResult(what, batch, len(times), median(times), min(times), max(times), first, peak)


def random_batch(task: Task, batch: int) -> dict[str, Tensor]:
    """Return a batch of random images and labels on the task's device, in the form that a loader yields."""
    device, shape = next(task.parameters()).device, image_shape(task)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=generator)
    labels = torch.randint(
        max(task.num_classes, 1), (batch, *shape[1:]) if task.labels_pixels else (batch,), generator=generator
    )
    tensors = {"inputs": images, "labels": labels, "sample_idx": torch.arange(batch)}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _training(task: Task, cfg: Config, batch: int, amp: bool) -> Callable[[], None]:
    if not cfg.get("optim_wrapper"):
        raise ValueError("the config has no optim_wrapper, which a training step needs")
    settings = copy.deepcopy(cfg.optim_wrapper)
    settings.update({"accumulative_counts": 1, **(amp_optim_wrapper() if amp else {})})
    with DefaultScope.overwrite_default_scope(SCOPE):
        wrapper = build_optim_wrapper(task, settings)
    wrapper.initialize_count_status(task, 0, 10**9)
    task.train()
    images = random_batch(task, batch)
    return lambda: task.train_step(images, wrapper)


def _inference(task: Task, batch: int, amp: bool) -> Callable[[], None]:
    task.eval().eval_dtype = getattr(torch, amp_dtype()) if amp else None
    images = {"inputs": random_batch(task, batch)["inputs"]}

    def step() -> None:
        with torch.inference_mode():
            task(**task.data_preprocessor(images), mode="tensor")

    return step


def seconds_of(run: Callable[[], object], times: int = 1) -> float:
    """Return the mean seconds of ``times`` runs, between two synchronizations with the device."""
    synchronize()
    start = time.perf_counter()
    for _ in range(times):
        run()
    synchronize()
    return (time.perf_counter() - start) / times


def synchronize() -> None:
    """Wait for the work that is queued on the GPU, if there is a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak() -> bool:
    """Reset the peak memory; return False if the system does not allow it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # without a reset, the peak includes earlier work of the process
        return False
    return True


def peak_bytes() -> int | None:
    """Return the peak memory in bytes, of PyTorch's tensors on a GPU, of the process on a CPU; None if unknown."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    except OSError:  # not Linux
        return None
    return 1024 * int(match[1]) if match else None
