"""From the recipe's global batch to what each process loads and how many micro-batches it accumulates."""

import math
from typing import NamedTuple


class BatchPlan(NamedTuple):
    """How one optimisation step's global batch is spread.

    The shares of the processes differ by one sample at most, and so do the ``micro_batches`` that each process splits
    its share into. Their number is the same for all processes.
    """

    global_batch_size: int
    world_size: int
    micro_batches: int

    @property
    def shares(self) -> tuple[int, int]:
        """The samples that a process loads, at least and at most."""
        return self.global_batch_size // self.world_size, math.ceil(self.global_batch_size / self.world_size)

    @property
    def per_device(self) -> int:
        """The samples that a process loads, at most."""
        return self.shares[1]

    @property
    def micro_batch_sizes(self) -> tuple[int, int]:
        """The samples of a micro-batch, at least and at most."""
        return self.shares[0] // self.micro_batches, math.ceil(self.shares[1] / self.micro_batches)

    @property
    def micro_batch_size(self) -> int:
        """The samples of a micro-batch, at most."""
        return self.micro_batch_sizes[1]

    def share(self, rank: int) -> int:
        """The samples that a process loads: one more for each of the first processes, where they do not divide."""
        return self.shares[0] + (rank < self.global_batch_size % self.world_size)

    def __str__(self) -> str:
        spread = f"{_processes(self.world_size)} x {_range(self.shares)}"
        if self.micro_batches > 1:
            spread += f" in {self.micro_batches} micro-batches of {_range(self.micro_batch_sizes)}"
        return f"{self.global_batch_size} = {spread}"


def plan_batch(global_batch_size: int, world_size: int, max_per_device: int | None = None) -> BatchPlan:
    """Spread a global batch over processes, and over micro-batches where a device takes only ``max_per_device``.

    Raises:
        ValueError: there are more processes than samples, or a device takes one sample at a time and the processes have
            not as many each.
    """
    for name, value in (("global_batch_size", global_batch_size), ("max_batch_per_device", max_per_device)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if global_batch_size < world_size:
        raise ValueError(
            f"global_batch_size {global_batch_size} has no image for each of {_processes(world_size)}: take a batch of "
            f"at least {world_size}, or at most {_processes(global_batch_size)}"
        )
    plan = BatchPlan(global_batch_size, world_size, 1)
    micro_batches = count_micro_batches(plan.shares, max_per_device or plan.per_device)
    if micro_batches is None:
        raise ValueError(
            f"global_batch_size {plan} cannot go through one image at a time, which would be another number of steps "
            f"for some processes: set max_batch_per_device=2 or {nearest_even(global_batch_size, world_size)}"
        )
    return plan._replace(micro_batches=micro_batches)


def count_micro_batches(shares: tuple[int, int], most: int) -> int | None:
    """Into how many micro-batches of at most ``most`` samples the processes split their shares; None if they cannot.

    As few as there can be; or the fewest equal ones, if these are at least half as large as they may be.

    Args:
        shares: the samples that a process has, at least and at most.
        most: samples in a micro-batch.
    """
    least, largest = shares
    fewest = math.ceil(largest / most)
    if least == largest:
        equal = (n for n in range(fewest, max(2 * largest // most, 1) + 1) if largest % n == 0)
        return next(equal, fewest)
    return fewest if fewest <= least else None


def nearest_even(global_batch_size: int, world_size: int) -> str:
    """The nearest batches that divide over the processes, for a message."""
    below = global_batch_size // world_size * world_size
    either = f"{below} or " if below else ""
    return f"global_batch_size={either}{below + world_size}"


def _range(least_and_most: tuple[int, int]) -> str:
    return " or ".join(map(str, sorted(set(least_and_most))))


def _processes(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"
