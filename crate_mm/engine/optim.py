"""Optimizers and mixed precision. Every optimizer of torch.optim and Lion are registered by MMEngine or here."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lion_pytorch import Lion
from mmengine.optim import OptimWrapper
from torch import nn

from ..registry import OPTIM_WRAPPERS, OPTIMIZERS

OPTIMIZERS.register_module(module=Lion)


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
