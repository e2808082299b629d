"""How fast a config's model is here, and how much memory it takes: the real step of training, and inference.

The images are random and lie on the device: what loading them takes is not in it.
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
from ..models.tasks.base import Task, image_shape, task_of
from ..registry import MODELS, SCOPE
from .optim.wrapper import amp_dtype, amp_optim_wrapper
from .parallel.blocks import prepare_blocks

WARM_UP, LEAST_STEPS, MOST_STEPS = 3, 5, 1000


class BenchResult(NamedTuple):
    """What was measured.

    Args:
        what: 'training' or 'inference'.
        batch: images of a step.
        steps: that were timed, after ``WARM_UP`` that were not.
        seconds: of a step, the median.
        least, most: the fastest and the slowest step.
        first: the first of all, which compiles where that is asked for.
        memory: the peak in bytes; on a GPU of PyTorch's tensors, on a CPU of the process.
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
        """Images a second, by the median step."""
        return self.batch / self.seconds


def bench(cfg: Config, what: str, batch: int = 32, seconds: float = 10.0, amp: bool = False) -> BenchResult:
    """Measure steps of a config's model on one device.

    A step of training is forward, what the model does to a batch, backward, and the optimizer's step, as in a run. One
    of inference is the normalisation and the model's output. Blocks are compiled as in a run.

    Args:
        cfg: a user's config.
        what: 'training' or 'inference'.
        batch: images of a step.
        seconds: to measure for, in at least ``LEAST_STEPS`` steps.
        amp: in mixed precision, as the tools' ``--amp`` has it.

    Raises:
        ValueError: another ``what``, the config does not build, or the model gives no example of its images.
    """
    if what not in ("training", "inference"):
        raise ValueError(f"unknown measurement {what!r}: choose training, inference")
    ready = resolve_config(cfg, world_size=1)
    task = task_of(MODELS.build(ready.model)).to(get_device())
    recompute = ready.activation_checkpointing is True
    prepare_blocks(task, ready.compile_blocks, recompute, ready.residual_dtype if amp else None)
    step = _training(task, ready, batch, amp) if what == "training" else _inference(task, batch, amp)
    known = _forget_peak()
    first = _timed(step)
    for _ in range(WARM_UP - 1):
        _timed(step)
    times: list[float] = []
    while len(times) < LEAST_STEPS or (sum(times) < seconds and len(times) < MOST_STEPS):
        times.append(_timed(step))
    return BenchResult(
        what, batch, len(times), median(times), min(times), max(times), first, _peak() if known else None
    )


def random_batch(task: Task, batch: int) -> dict[str, Tensor]:
    """A batch as a loader gives it, of random images and labels, on the task's device."""
    device, shape = next(task.parameters()).device, image_shape(task)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=generator)
    labels = torch.randint(max(task.num_classes, 1), (batch,), generator=generator)
    parts = {"inputs": images, "labels": labels, "sample_idx": torch.arange(batch)}
    return {name: part.to(device) for name, part in parts.items()}


def _training(task: Task, cfg: Config, batch: int, amp: bool) -> Callable[[], None]:
    if not cfg.get("optim_wrapper"):
        raise ValueError("the config has no optim_wrapper: it does not say how its model is trained")
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


def _timed(step: Callable[[], None]) -> float:
    _wait()
    start = time.perf_counter()
    step()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _forget_peak() -> bool:
    """Begin to measure the most memory anew; False if the system does not let this process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # the peak would be that of all that the process has done so far
        return False
    return True


def _peak() -> int | None:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    except OSError:  # no Linux
        return None
    return 1024 * int(found[1]) if found else None
