"""Shard an optimizer's state across ranks (ZeRO stage 1)."""

from datetime import timedelta

import torch
import torch.distributed as dist
from mmengine.utils import apply_to
from torch import Tensor
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import Optimizer


class ShardedOptimizer(ZeroRedundancyOptimizer):
    """Optimizer with its state sharded across ranks (ZeRO stage 1); steps and checkpoints do not depend on sharding.

    A checkpoint contains the full state in the optimizer's own format. A run can resume from it with or without
    sharding and on any number of ranks.

    Args:
        optimizer: an optimizer that has not taken a step.
        settings: the arguments with which ``optimizer`` was built.
        timeout: seconds to wait for another rank (default: PyTorch's).
    """

    def __init__(self, optimizer: Optimizer, settings: dict, timeout: float | None = None) -> None:
        self.name = type(optimizer).__name__
        super().__init__(optimizer.param_groups, type(optimizer), **settings)
        wait = timedelta(seconds=timeout) if timeout else None
        self.hosts = dist.new_group(backend="gloo", timeout=wait)  # the full state may not fit on a GPU
        self.full_state: dict[int, dict] | None = None

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Send the state to one rank, shard by shard, through CPU memory (gloo). All ranks call it.

        PyTorch's own method broadcasts each shard to all ranks, so that every rank receives the full state.

        Args:
            to: the rank that receives the full state. ``state_dict`` must be called on this rank.
        """
        indices = {parameter: n for n, parameter in enumerate(p for g in self.param_groups for p in g["params"])}
        shard = {indices[p]: apply_to(state, torch.is_tensor, Tensor.cpu) for p, state in self.optim.state.items()}
        if dist.get_rank() != to:
            dist.send_object_list([shard], dst=to, group=self.hosts)
            return
        for rank in range(dist.get_world_size()):
            if rank != to:
                received: list = [None]
                dist.recv_object_list(received, src=rank, group=self.hosts)
                shard |= received[0]
        self.full_state = dict(sorted(shard.items()))

    def state_dict(self) -> dict:
        """Return the full state, on the rank that has received it.

        The optimizer does not keep the state: consolidate it again before the next call.

        Raises:
            RuntimeError: ``consolidate_state_dict`` was not called before.
        """
        full_state, self.full_state = self.full_state, None
        if full_state is None:
            raise RuntimeError("the state is sharded across ranks: call consolidate_state_dict on all ranks first")
        return {"state": full_state, "param_groups": Optimizer.state_dict(self)["param_groups"]}


def optimizer_name(optimizer: Optimizer) -> str:
    """Return the optimizer's class name, without its sharded wrapper."""
    return optimizer.name if isinstance(optimizer, ShardedOptimizer) else type(optimizer).__name__
