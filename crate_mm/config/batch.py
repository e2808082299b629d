"""From the recipe's global batch to what each device loads and how many micro-batches it accumulates."""

import math
from typing import NamedTuple


class BatchPlan(NamedTuple):
    """How one optimisation step's global batch is spread.

    ``global_batch_size = world_size * per_device``, ``per_device = micro_batches * micro_batch_size``.
    """

    global_batch_size: int
    world_size: int
    per_device: int
    micro_batches: int

    @property
    def micro_batch_size(self) -> int:
        return self.per_device // self.micro_batches

    def __str__(self) -> str:
        spread = f"{_processes(self.world_size)} x {self.per_device}"
        if self.micro_batches > 1:
            spread += f" in {self.micro_batches} micro-batches of {self.micro_batch_size}"
        return f"{self.global_batch_size} = {spread}"


def plan_batch(global_batch_size: int, world_size: int, max_per_device: int | None = None) -> BatchPlan:
    """Spread a global batch over processes, and over micro-batches where a device takes only ``max_per_device``.

    Raises:
        ValueError: the batch does not divide over the processes, or what a process loads not into micro-batches of
            between half of and all that a device takes, if it is more than that; the message names the nearest batches
            that do.
    """
    for name, value in (("global_batch_size", global_batch_size), ("max_batch_per_device", max_per_device)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    plan = _plan(global_batch_size, world_size, max_per_device)
    if plan is not None:
        return plan
    below = next((n for n in range(global_batch_size - 1, 0, -1) if _plan(n, world_size, max_per_device)), None)
    above = next(n for n in range(global_batch_size + 1, 9**9) if _plan(n, world_size, max_per_device))
    nearest = f"the nearest that do: {above}" if below is None else f"the nearest that do: {below} and {above}"
    if global_batch_size % world_size:
        raise ValueError(
            f"global_batch_size {global_batch_size} does not divide over {_processes(world_size)}; {nearest}"
        )
    raise ValueError(
        f"global_batch_size {global_batch_size} gives each of {_processes(world_size)} "
        f"{global_batch_size // world_size} images, which do not divide into micro-batches of at most "
        f"{max_per_device} (max_batch_per_device); {nearest}"
    )


def _plan(global_batch_size: int, world_size: int, max_per_device: int | None) -> BatchPlan | None:
    """The plan with the fewest micro-batches, or None if there is none."""
    per_device, rest = divmod(global_batch_size, world_size)
    if rest:
        return None
    most = max_per_device or per_device
    for micro_batches in range(math.ceil(per_device / most), max(2 * per_device // most, 1) + 1):
        if per_device % micro_batches == 0:
            return BatchPlan(global_batch_size, world_size, per_device, micro_batches)
    return None


def _processes(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"
