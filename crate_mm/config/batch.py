"""Split a recipe's global batch over processes and micro-batches."""

import math
from typing import NamedTuple


class BatchPlan(NamedTuple):
    """Distribution of one optimization step's global batch.

    Batch sizes differ by at most one sample between processes, and micro-batches by at most one within a process. All
    processes have the same number of micro-batches, ``micro_batches``.
    """

    global_batch_size: int
    world_size: int
    micro_batches: int

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """Smallest and largest batch size of a process."""
        return self.global_batch_size // self.world_size, math.ceil(self.global_batch_size / self.world_size)

    @property
    def per_device(self) -> int:
        """Largest batch size of a process."""
        return self.batch_sizes[1]

    @property
    def micro_batch_sizes(self) -> tuple[int, int]:
        """Smallest and largest size of a micro-batch."""
        return self.batch_sizes[0] // self.micro_batches, math.ceil(self.batch_sizes[1] / self.micro_batches)

    @property
    def micro_batch_size(self) -> int:
        """Largest size of a micro-batch."""
        return self.micro_batch_sizes[1]

    def batch_size_of(self, rank: int) -> int:
        """Return the batch size of a rank; the first ranks get one sample of the remainder each."""
        return self.batch_sizes[0] + (rank < self.global_batch_size % self.world_size)

    def __str__(self) -> str:
        text = f"{_processes(self.world_size)} x {_range(self.batch_sizes)}"
        if self.micro_batches > 1:
            text += f" in {self.micro_batches} micro-batches of {_range(self.micro_batch_sizes)}"
        return f"{self.global_batch_size} = {text}"


def plan_batch(global_batch_size: int, world_size: int, max_per_device: int | None = None) -> BatchPlan:
    """Split a global batch over processes, and into micro-batches of at most ``max_per_device`` samples.

    Raises:
        ValueError: there are more processes than samples, or ``max_per_device`` is 1 and the processes have unequal
            batch sizes.
    """
    for name, value in (("global_batch_size", global_batch_size), ("max_batch_per_device", max_per_device)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if global_batch_size < world_size:
        raise ValueError(
            f"global_batch_size {global_batch_size} has fewer images than the {_processes(world_size)}: use a batch of "
            f"at least {world_size}, or at most {_processes(global_batch_size)}"
        )
    plan = BatchPlan(global_batch_size, world_size, 1)
    micro_batches = count_micro_batches(plan.batch_sizes, max_per_device or plan.per_device)
    if micro_batches is None:
        raise ValueError(
            f"global_batch_size {plan} cannot be processed one image at a time, because the number of micro-batches "
            f"would vary between processes: set max_batch_per_device=2 or {nearest_even(global_batch_size, world_size)}"
        )
    return plan._replace(micro_batches=micro_batches)


def count_micro_batches(batch_sizes: tuple[int, int], limit: int) -> int | None:
    """Return the number of micro-batches of at most ``limit`` samples; None if some process has too few samples.

    The number is the smallest that gives equal micro-batches of at least half of ``limit``; otherwise, the smallest
    possible number.

    Args:
        batch_sizes: smallest and largest batch size of a process.
        limit: maximum samples in a micro-batch.
    """
    smallest, largest = batch_sizes
    fewest = math.ceil(largest / limit)
    if smallest == largest:
        equal = (n for n in range(fewest, max(2 * largest // limit, 1) + 1) if largest % n == 0)
        return next(equal, fewest)
    return fewest if fewest <= smallest else None


def nearest_even(global_batch_size: int, world_size: int) -> str:
    """Return, as text for a message, the nearest batch sizes that the number of processes divides."""
    below = global_batch_size // world_size * world_size
    either = f"{below} or " if below else ""
    return f"global_batch_size={either}{below + world_size}"


def _range(bounds: tuple[int, int]) -> str:
    return " or ".join(map(str, sorted(set(bounds))))


def _processes(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"
