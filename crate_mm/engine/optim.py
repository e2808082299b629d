"""Optimizers and mixed precision. Every optimizer of torch.optim and Lion are registered by MMEngine or here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lion_pytorch
import mmengine.optim
import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import Optimizer

from ..registry import OPTIM_WRAPPERS, OPTIMIZERS
from .finite import FiniteCheck


@OPTIMIZERS.register_module()
class Lion(lion_pytorch.Lion):
    """lion-pytorch's Lion, which updates all parameters together: a few kernels on a GPU where its own takes six each.

    The result is lion-pytorch's to the last bit. (Its own ``foreach`` variant interpolates otherwise, which flips the
    signs of some updates.) States are interchangeable with lion-pytorch's.

    Args:
        params, lr, betas, weight_decay, decoupled_weight_decay: as for lion-pytorch's ``Lion``.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, weight_decay, decoupled_weight_decay=decoupled_weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
            gradients, averages = [p.grad for p in params], [self.state[p]["exp_avg"] for p in params]
            lr, (beta1, beta2) = group["lr"], group["betas"]
            decay = group["weight_decay"] / (self._init_lr if self.decoupled_wd else 1)
            torch._foreach_mul_(params, 1 - lr * decay)
            updates = torch._foreach_mul(averages, beta1)
            torch._foreach_add_(updates, gradients, alpha=1 - beta1)
            torch._foreach_sign_(updates)
            torch._foreach_add_(params, updates, alpha=-lr)
            torch._foreach_mul_(averages, beta2)
            torch._foreach_add_(averages, gradients, alpha=1 - beta2)
        return loss


class ShardedOptimizer(ZeroRedundancyOptimizer):
    """An optimizer whose state is split over the processes (ZeRO, stage 1), with the same result and checkpoint.

    A checkpoint holds the whole state in the optimizer's own format, so that a run goes on from it with or without
    sharding and on any number of processes.

    Args:
        optimizer: one that has not taken a step.
        settings: what it was built with.
    """

    def __init__(self, optimizer: Optimizer, settings: dict) -> None:
        self.name = type(optimizer).__name__
        super().__init__(optimizer.param_groups, type(optimizer), **settings)


def optimizer_name(optimizer: Optimizer) -> str:
    """The optimizer's name, which that of its sharded form is too."""
    return optimizer.name if isinstance(optimizer, ShardedOptimizer) else type(optimizer).__name__


class _CountsSteps:
    """Counts micro-batches inside, as an iteration of ours is a whole optimisation step."""

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        k = self._accumulative_counts
        super().initialize_count_status(model, init_counts * k, max_counts * k)


@OPTIM_WRAPPERS.register_module()
class OptimWrapper(_CountsSteps, mmengine.optim.OptimWrapper):
    """MMEngine's wrapper, which takes no step whose gradients are not finite.

    It would not show later: Lion's weights stay finite, its momentum never is again. The processes decide alike, since
    they have the same gradients. Whoever calls it stops the run, ``max_skipped_steps`` in a row being too many.

    Args:
        max_skipped_steps: with 0 no step is skipped and the first such gradient stops the run, on a GPU one step later,
            so that the host need not wait for the GPU at every step.
        args, kwargs: as for MMEngine's.
    """

    def __init__(self, *args, max_skipped_steps: int = 5, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.max_skipped_steps = max_skipped_steps
        self.skipped_in_a_row = 0
        self.wrong_parameters: list[nn.Parameter] = []  # those whose gradients were not finite at the last skipped step
        self.check = FiniteCheck("gradient norm")

    def step(self, **kwargs) -> None:
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if params:
            norm = torch.stack(torch._foreach_norm([p.grad for p in params])).norm()
            if not self.max_skipped_steps:
                self.check.see(norm, self.message_hub.get_info("iter", 0) + 1, self.param_groups[0]["lr"])
            elif not norm.isfinite():
                self.skipped_in_a_row += 1
                self.wrong_parameters = [p for p in params if not p.grad.isfinite().all()]
                return
        self.skipped_in_a_row = 0
        super().step(**kwargs)


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Mixed precision without gradient scaling, on any device: for bf16, whose range is that of float32.

    Args:
        dtype: 'bfloat16'.
        kwargs: as for MMEngine's ``OptimWrapper``.
    """

    def __init__(self, dtype: str = "bfloat16", **kwargs) -> None:
        super().__init__(**kwargs)
        self.dtype = getattr(torch, dtype)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, self.dtype):
            yield


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(_CountsSteps, mmengine.optim.AmpOptimWrapper):
    """MMEngine's fp16 with a gradient scaler, which skips the steps whose gradients are not finite.

    ``max_skipped_steps`` has no effect: the scaler tries smaller scales.
    """

    def __init__(self, *args, max_skipped_steps: int = 5, **kwargs) -> None:
        super().__init__(*args, **kwargs)


def amp_dtype() -> str:
    """The precision for ``--amp`` here: bf16 on CPUs and where the GPU has it, else fp16."""
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "float16"
    return "bfloat16"


def amp_optim_wrapper() -> dict:
    """Config of the OptimWrapper for ``--amp`` here: autocast alone for bf16, with a gradient scaler for fp16."""
    if amp_dtype() == "float16":
        return {"type": "AmpOptimWrapper", "dtype": "float16", "loss_scale": "dynamic"}
    return {"type": "AutocastOptimWrapper", "dtype": "bfloat16"}
