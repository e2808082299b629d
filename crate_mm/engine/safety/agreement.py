"""What all processes of a run agree on at each step, and that a process which hangs is noticed."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from mmengine.dist import is_distributed

from .finite import PeerFailedError


class Agreement:
    """What each process has to say about a step, known to all of them at its end.

    The exchange goes through the hosts' network while the step is computed, so that the GPU does not wait for it. At
    most steps nobody says anything new. So the processes exchange one integer, whether some process does, by an
    all_reduce, whose steps grow with the logarithm of their number. Only where it is so, an all_gather of the numbers
    follows, whose steps grow with the number of processes.

    Args:
        timeout: seconds after which a process gives up waiting for the others; PyTorch's default if not given.
    """

    def __init__(self, timeout: float | None = None) -> None:
        wait = timedelta(seconds=timeout) if timeout else None
        self._group = dist.new_group(backend="gloo", timeout=wait) if is_distributed() else None
        self._pending: tuple[dist.Work, torch.Tensor, dict[str, int]] | None = None
        self._said: dict[str, int] | None = None  # by this process, at the last exchange
        self._heard: dict[str, list[int]] = {}  # what all have said, as of then

    def begin(self, said: dict[str, int]) -> None:
        """Tell the others, who all call it with the same keys."""
        if self._group is not None:
            news = torch.tensor([int(said != self._said)])
            work = dist.all_reduce(news, dist.ReduceOp.MAX, group=self._group, async_op=True)
            self._pending = work, news, dict(said)

    def end(self, said: dict[str, int]) -> dict[str, list[int]]:
        """Return what all processes have said, in the order of their ranks.

        A single process hears what it says now, not at the beginning.
        """
        if self._pending is None:
            return {key: [value] for key, value in said.items()}
        (work, news, told), self._pending = self._pending, None
        work.wait()
        if news.item():
            heard = [torch.zeros(len(told), dtype=torch.int64) for _ in range(dist.get_world_size())]
            dist.all_gather(heard, torch.tensor(list(told.values())), group=self._group)
            self._said, self._heard = told, dict(zip(told, torch.stack(heard).T.tolist()))
        return {key: list(values) for key, values in self._heard.items()}

    def sum(self, number: int) -> int:
        """Return the sum of a number over all processes, who all call it."""
        total = torch.tensor(number)
        if self._group is not None:
            dist.all_reduce(total, group=self._group)
        return total.item()

    def wait(self) -> None:
        """Wait for all processes to come here: one that ended early would bring down the one that still writes."""
        if self._group is not None:
            dist.barrier(self._group)


@contextmanager
def notice_hanging(timeout: float | None) -> Iterator[None]:
    """Say in one sentence that another process was waited for in vain, whatever this one was at (gloo alone).

    Args:
        timeout: of the process groups, in seconds; PyTorch's default if not given.

    Raises:
        PeerFailedError: the wait for another process came to its end.
    """
    try:
        yield
    except RuntimeError as error:
        # torch.distributed has no class of its own for gloo's timeouts.
        if not is_distributed() or "gloo" not in str(error) or "Timed out waiting" not in str(error):
            raise
        waited = f"{timeout:g} s (env_cfg.dist_cfg.timeout)" if timeout else "PyTorch's default timeout"
        raise PeerFailedError(
            f"another process has not come to this point of the run within {waited}: it hangs, or is slower than that; "
            "--resume goes on from the newest checkpoint"
        ) from error
