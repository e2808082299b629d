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
        spread = f"{self.world_size} process{'es' if self.world_size > 1 else ''} x {self.per_device}"
        if self.micro_batches > 1:
            spread += f" in {self.micro_batches} micro-batches of {self.micro_batch_size}"
        return f"{self.global_batch_size} = {spread}"


def plan_batch(global_batch_size: int, world_size: int, max_per_device: int | None = None) -> BatchPlan:
    """Spread a global batch over processes, and over micro-batches where a device takes only ``max_per_device``.

    Raises:
        ValueError: the batch does not divide over the processes, or what a process loads not into micro-batches of
            between half of and all that a device takes.
    """
    if global_batch_size < 1 or (max_per_device is not None and max_per_device < 1):
        raise ValueError(
            f"global_batch_size {global_batch_size} and max_batch_per_device {max_per_device} must be at least 1"
        )
    per_device, rest = divmod(global_batch_size, world_size)
    if rest:
        raise ValueError(
            f"global_batch_size {global_batch_size} does not divide over {world_size} processes; "
            f"the nearest that do: {_either_side(global_batch_size, world_size)}"
        )
    if max_per_device is None or per_device <= max_per_device:
        return BatchPlan(global_batch_size, world_size, per_device, micro_batches=1)
    for micro_batches in range(math.ceil(per_device / max_per_device), 2 * per_device // max_per_device + 1):
        if per_device % micro_batches == 0:
            return BatchPlan(global_batch_size, world_size, per_device, micro_batches)
    step = world_size * math.ceil(per_device / max_per_device)
    raise ValueError(
        f"global_batch_size {global_batch_size} gives each of {world_size} process{'es' if world_size > 1 else ''} "
        f"{per_device} images, which do not divide into micro-batches of at most {max_per_device} "
        f"(max_batch_per_device); the nearest that do: {_either_side(global_batch_size, step)}"
    )


def _either_side(number: int, divisor: int) -> str:
    """The multiples of ``divisor`` below and above ``number``."""
    below = number // divisor * divisor
    return f"{below} and {below + divisor}" if below else str(divisor)
