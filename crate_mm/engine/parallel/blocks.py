"""What is done to a model's repeated blocks: compiling them, recomputing them in the backward pass, and in what
precision they hand on their tokens."""

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
    """Return the layers of each backbone and decoder in a model, a teacher's as well as a student's, a group for each.

    Args:
        model: a task, or a backbone alone. A list of ``Layer`` outside every backbone is a decoder's.

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
    """Compile the repeated block in place: one compilation serves all of them, and no parameter changes its name.

    What stands between the blocks stays eager. The first step of each input shape compiles, for this shape alone: after
    a validation with another batch, training would else be compiled for batches of any size.

    Raises:
        ValueError: a backbone has no layers.
    """
    for block in chain(*layer_groups(model)):
        block.compile(dynamic=False)
    keep_graphs_whole()


def compile_backbone(model: nn.Module) -> None:
    """Compile each part of a task that has parameters, in place, as one graph: its backbone, from images to tokens, its
    head or decoder, and a teacher's.

    What stands before, between and behind the blocks is compiled too, and compiling takes longer than for one block.
    Shapes are as for ``compile_blocks``.
    """
    parts = list(model.children())
    for part in parts:
        if isinstance(part, (nn.ModuleDict, nn.ModuleList)):  # which are not called themselves
            parts += part.children()
        elif any(True for _ in part.parameters()):
            part.compile(dynamic=False)
    keep_graphs_whole()


def checkpoint_blocks(model: nn.Module) -> None:
    """Keep only the blocks' inputs for the backward pass and compute the rest again: less memory, a third more work.

    Raises:
        ValueError: a backbone has no layers.
    """
    for block in chain(*layer_groups(model)):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def set_residual_dtype(dtype: torch.dtype, model: nn.Module) -> None:
    """Hand tokens from block to block in another precision, under autocast: half the bytes to move, for bf16.

    Within a block sums are taken in what their parts have, and behind the last block of each backbone and decoder
    tokens are float32. Without autocast nothing changes.

    Raises:
        ValueError: a backbone has no layers.
    """
    for blocks in layer_groups(model):
        for block in blocks:
            block.forward = partial(_hand_on, block.forward, dtype, torch.float32 if block is blocks[-1] else dtype)


def _hand_on(forward: Callable, dtype: torch.dtype, last: torch.dtype, z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A block's forward pass of tokens ``z`` ``(B, N, d)``, with both casts inside, where a compiler joins them to its
    first and last kernel."""
    if not torch.is_autocast_enabled(z.device.type):
        return forward(z, *args, **kwargs)
    return forward(z.to(dtype), *args, **kwargs).to(last)


def prepare_blocks(model: nn.Module, compile: bool | str | None, recompute: bool, residual: str | None = None) -> None:
    """Apply the config's ``compile_blocks`` (None: where there is a GPU), ``activation_checkpointing`` and
    ``residual_dtype``."""
    if residual is not None:
        set_residual_dtype(getattr(torch, residual), model)
    if recompute:
        checkpoint_blocks(model)
    if compile is None:
        compile = torch.cuda.is_available() and _has_blocks(model)
    if compile == "backbone":
        print_log("the backbone is compiled at the first step, which may take minutes", "current", logging.INFO)
        compile_backbone(model)
    elif compile:
        print_log("the blocks are compiled at the first step, which may take a minute", "current", logging.INFO)
        compile_blocks(model)
