"""Optimizers and mixed precision. Every optimizer of torch.optim and Lion are registered by MMEngine or here."""

from collections.abc import Iterator
from contextlib import contextmanager

import mmengine.optim
import torch
from lion_pytorch import Lion
from torch import nn

from ..registry import OPTIM_WRAPPERS, OPTIMIZERS
from .hooks import RunStoppedError, not_finite_message

OPTIMIZERS.register_module(module=Lion)


class _CountsSteps:
    """Counts micro-batches inside, as an iteration of ours is a whole optimisation step."""

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        k = self._accumulative_counts
        super().initialize_count_status(model, init_counts * k, max_counts * k)


@OPTIM_WRAPPERS.register_module()
class OptimWrapper(_CountsSteps, mmengine.optim.OptimWrapper):
    """MMEngine's wrapper, which stops before a step whose gradients are not finite.

    After the step it would be too late: Lion's weights stay finite, its momentum never is again.
    """

    def step(self, **kwargs) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm() if gradients else torch.zeros(())
        if not torch.isfinite(norm):
            iteration = self.message_hub.get_info("iter", 0) + 1
            raise RunStoppedError(not_finite_message("gradient norm", norm, iteration, self.param_groups[0]["lr"]))
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
    """MMEngine's fp16 with a gradient scaler, which skips the steps whose gradients are not finite."""


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
