"""An optimizer whose state is split over the processes."""

from datetime import timedelta

import torch
import torch.distributed as dist
from mmengine.utils import apply_to
from torch import Tensor
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import Optimizer


class ShardedOptimizer(ZeroRedundancyOptimizer):
    """An optimizer whose state is split over the processes (ZeRO, stage 1), with the same result and checkpoint.

    A checkpoint holds the whole state in the optimizer's own format, so that a run goes on from it with or without
    sharding and on any number of processes.

    Args:
        optimizer: one that has not taken a step.
        settings: what it was built with.
        timeout: seconds after which a process gives up waiting for another; PyTorch's default if not given.
    """

    def __init__(self, optimizer: Optimizer, settings: dict, timeout: float | None = None) -> None:
        self.name = type(optimizer).__name__
        super().__init__(optimizer.param_groups, type(optimizer), **settings)
        wait = timedelta(seconds=timeout) if timeout else None
        self.hosts = dist.new_group(backend="gloo", timeout=wait)  # the whole state may not fit a GPU
        self.whole: dict[int, dict] | None = None

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Send the state to one process, part by part, from host to host; all processes call it.

        PyTorch's own broadcasts each part to all processes. So each of them receives the whole state.

        Args:
            to: the rank of the process, whose ``state_dict`` gives the state out.
        """
        numbers = {parameter: n for n, parameter in enumerate(p for g in self.param_groups for p in g["params"])}
        part = {numbers[p]: apply_to(state, torch.is_tensor, Tensor.cpu) for p, state in self.optim.state.items()}
        if dist.get_rank() != to:
            dist.send_object_list([part], dst=to, group=self.hosts)
            return
        for rank in range(dist.get_world_size()):
            if rank != to:
                received: list = [None]
                dist.recv_object_list(received, src=rank, group=self.hosts)
                part |= received[0]
        self.whole = dict(sorted(part.items()))

    def state_dict(self) -> dict:
        """The whole state, on the process that has it, and once: this process then needs no memory for it.

        Raises:
            RuntimeError: ``consolidate_state_dict`` was not called before.
        """
        whole, self.whole = self.whole, None
        if whole is None:
            raise RuntimeError("the state is on all processes: call consolidate_state_dict on all of them first")
        return {"state": whole, "param_groups": Optimizer.state_dict(self)["param_groups"]}


def optimizer_name(optimizer: Optimizer) -> str:
    """The optimizer's name, which that of its sharded form is too."""
    return optimizer.name if isinstance(optimizer, ShardedOptimizer) else type(optimizer).__name__
