"""Exchange flags between ranks at each step, and report a rank that hangs."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from mmengine.dist import is_distributed

from .finite import PeerFailedError


class Agreement:
    """Exchange of each rank's flags at a step.

    The exchange uses gloo on the hosts while the step is computed, so that the GPU does not wait. Flags rarely change.
    An all_reduce of one integer, in O(log n) rounds, tells whether any rank's flags have changed. If so, an all_gather
    exchanges the flags of all ranks, in O(n) rounds.

    Args:
        timeout: seconds to wait for the other ranks (default: PyTorch's).
    """

    def __init__(self, timeout: float | None = None) -> None:
        wait = timedelta(seconds=timeout) if timeout else None
        self._group = dist.new_group(backend="gloo", timeout=wait) if is_distributed() else None
        self._pending: tuple[dist.Work, torch.Tensor, dict[str, int]] | None = None
        self._last_flags: dict[str, int] | None = None  # of this rank, at the last all_gather
        self._all_flags: dict[str, list[int]] = {}  # of all ranks, at the last all_gather

    def begin(self, local_flags: dict[str, int]) -> None:
        """Start the exchange. All ranks call it with the same keys."""
        if self._group is not None:
            changed = torch.tensor([int(local_flags != self._last_flags)])
            work = dist.all_reduce(changed, dist.ReduceOp.MAX, group=self._group, async_op=True)
            self._pending = work, changed, dict(local_flags)

    def end(self, local_flags: dict[str, int]) -> dict[str, list[int]]:
        """Return the flags of all ranks at ``begin``, in order of rank; without other ranks, ``local_flags``."""
        if self._pending is None:
            return {key: [value] for key, value in local_flags.items()}
        (work, changed, flags), self._pending = self._pending, None
        work.wait()
        if changed.item():
            gathered = [torch.zeros(len(flags), dtype=torch.int64) for _ in range(dist.get_world_size())]
            dist.all_gather(gathered, torch.tensor(list(flags.values())), group=self._group)
            self._last_flags, self._all_flags = flags, dict(zip(flags, torch.stack(gathered).T.tolist()))
        return {key: list(values) for key, values in self._all_flags.items()}

    def sum(self, number: int) -> int:
        """Return the sum of a number over all ranks. All ranks call it."""
        total = torch.tensor(number)
        if self._group is not None:
            dist.all_reduce(total, group=self._group)
        return total.item()

    def wait(self) -> None:
        """Wait for all ranks: a rank that exits early would bring down rank 0 while rank 0 writes a checkpoint."""
        if self._group is not None:
            dist.barrier(self._group)


@contextmanager
def notice_hanging(timeout: float | None) -> Iterator[None]:
    """Replace gloo's timeout error by a one-line message.

    Args:
        timeout: timeout of the process groups in seconds (default: PyTorch's).

    Raises:
        PeerFailedError: timed out waiting for another process.
    """
    try:
        yield
    except RuntimeError as error:
        # PyTorch has no exception class for gloo's timeouts.
        if not is_distributed() or "gloo" not in str(error) or "Timed out waiting" not in str(error):
            raise
        limit = f"{timeout:g} s (env_cfg.dist_cfg.timeout)" if timeout else "PyTorch's default timeout"
        raise PeerFailedError(
            f"timed out after {limit} waiting for another process: it hangs or is too slow; --resume continues from "
            "the newest checkpoint"
        ) from error
