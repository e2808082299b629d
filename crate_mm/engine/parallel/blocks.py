"""Compile a model's blocks, checkpoint their activations, and set the dtype of the residual stream between them."""

import logging
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...io.log import print_log
from ...models.backbone import Backbone
from ...models.layers import Layer
from ...torch_private import keep_graphs_whole


def layer_groups(model: nn.Module) -> list[list[nn.Module]]:
    """Return one group of layers for each backbone and decoder in a model, teachers included.

    Args:
        model: a task, or a backbone alone. ``Layer`` modules outside a backbone belong to a decoder.

    Raises:
        ValueError: a backbone, or the whole model, has no layers.
    """
    groups = _groups(model)
    if not groups:
        raise _no_layers(model)
    return groups


def _groups(module: nn.Module) -> list[list[nn.Module]]:
    if isinstance(module, Backbone):
        if not module.layers:
            raise _no_layers(module)
        return [module.layers]
    layers = [child for child in module.children() if isinstance(child, Layer)]
    groups = [layers] if layers else []
    for child in module.children():
        if not isinstance(child, Layer):
            groups += _groups(child)
    return groups


def _has_blocks(model: nn.Module) -> bool:
    try:
        return bool(layer_groups(model))
    except ValueError:
        return False


def _no_layers(module: nn.Module) -> ValueError:
    return ValueError(
        f"{type(module).__name__} has no layers: compile_blocks and activation_checkpointing need layers that inherit "
        "from crate_mm.models.Layer"
    )


def compile_blocks(model: nn.Module) -> None:
    """Compile each block in place. All blocks share one compilation, and parameter names do not change.

    Code outside the blocks stays eager. Each input shape is compiled separately, at its first step. With dynamic
    shapes, a validation with another batch size would make PyTorch recompile training for any batch size.

    Raises:
        ValueError: a backbone has no layers.
    """
    for block in chain(*layer_groups(model)):
        block.compile(dynamic=False)
    keep_graphs_whole()


def compile_backbone(model: nn.Module) -> None:
    """Compile each part of a task that has parameters (backbone, head, decoder, teacher) in place, as one graph each.

    Code outside the blocks is compiled too. Compilation takes longer than for one block. Shapes are static, as in
    ``compile_blocks``.
    """
    parts = list(model.children())
    for part in parts:
        if isinstance(part, (nn.ModuleDict, nn.ModuleList)):  # containers have no forward
            parts += part.children()
        elif any(True for _ in part.parameters()):
            part.compile(dynamic=False)
    keep_graphs_whole()


def enable_activation_checkpointing(model: nn.Module) -> None:
    """Store only the blocks' inputs and recompute the rest in the backward pass: less memory, a third more compute.

    Raises:
        ValueError: a backbone has no layers.
    """
    for block in chain(*layer_groups(model)):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def set_residual_dtype(dtype: torch.dtype, model: nn.Module) -> None:
    """Set the dtype of the residual stream between blocks under autocast; bf16 halves the memory traffic.

    Inside a block, sums use the dtype of their operands. After the last block of the backbone, and of the decoder if
    there is one, tokens are float32. Without autocast nothing changes.

    Raises:
        ValueError: a backbone has no layers.
    """
    for blocks in layer_groups(model):
        for block in blocks:
            out_dtype = torch.float32 if block is blocks[-1] else dtype
            block.forward = partial(_forward_cast, block.forward, dtype, out_dtype)


def _forward_cast(
    forward: Callable, dtype: torch.dtype, out_dtype: torch.dtype, z: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Run a block on tokens ``z`` ``(B, N, d)`` with casts of input and output, which the compiler can fuse."""
    if not torch.is_autocast_enabled(z.device.type):
        return forward(z, *args, **kwargs)
    return forward(z.to(dtype), *args, **kwargs).to(out_dtype)


def check_residual_dtype(residual: str | None, dtypes: set[str]) -> None:
    """Raise ``ValueError`` for a dtype of the residual stream if training and validation are in float32."""
    if residual and dtypes == {"float32"}:
        raise ValueError(f"residual_dtype={residual!r} needs mixed precision, but training is in float32: add --amp")


def prepare_blocks(model: nn.Module, compile: bool | str | None, recompute: bool, residual: str | None = None) -> None:
    """Apply the config's ``compile_blocks`` (None: on GPUs), ``activation_checkpointing`` and ``residual_dtype``."""
    if residual is not None:
        set_residual_dtype(getattr(torch, residual), model)
    if recompute:
        enable_activation_checkpointing(model)
    if compile is None:
        compile = torch.cuda.is_available() and _has_blocks(model)
    if compile == "backbone":
        print_log("the backbone is compiled at the first step, which may take minutes", "current", logging.INFO)
        compile_backbone(model)
    elif compile:
        print_log("the blocks are compiled at the first step, which may take a minute", "current", logging.INFO)
        compile_blocks(model)
