"""What is done to a model's repeated blocks: compiling them, recomputing them in the backward pass, and in what
precision they hand on their tokens."""

import logging
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..log import print_log
from ..private_torch import keep_graphs_whole


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The equal blocks of the model's backbone, as its ``blocks`` names them, and those of its decoder, if it has one.

    Raises:
        ValueError: the backbone names no blocks.
    """
    backbone = getattr(model, "backbone", model)
    blocks = list(getattr(backbone, "blocks", ()))
    if not blocks:
        raise ValueError(
            f"{type(backbone).__name__} has no attribute blocks: compile_blocks and activation_checkpointing need it"
        )
    return [*blocks, *getattr(getattr(model, "decoder", None), "blocks", ())]


def compile_blocks(model: nn.Module) -> None:
    """Compile the repeated block in place: one compilation serves all of them, and no parameter changes its name.

    What stands between the blocks stays eager. The first step of each input shape compiles, for this shape alone: after
    a validation with another batch, training would else be compiled for batches of any size.

    Raises:
        ValueError: the backbone names no blocks.
    """
    for block in repeated_blocks(model):
        block.compile(dynamic=False)
    keep_graphs_whole()


def compile_backbone(model: nn.Module) -> None:
    """Compile the backbone in place as one graph, from images to tokens, and the head or decoder as another.

    What stands before, between and behind the blocks is compiled too, and compiling takes longer than for one block.
    Shapes are as for ``compile_blocks``.
    """
    for part in (getattr(model, name, None) for name in ("backbone", "head", "decoder")):
        if isinstance(part, nn.Module):
            part.compile(dynamic=False)
    keep_graphs_whole()


def checkpoint_blocks(model: nn.Module) -> None:
    """Keep only the blocks' inputs for the backward pass and compute the rest again: less memory, a third more work.

    Raises:
        ValueError: the backbone names no blocks.
    """
    for block in repeated_blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def keep_tokens_in(dtype: torch.dtype, model: nn.Module) -> None:
    """Hand tokens from block to block in another precision, under autocast: half the bytes to move, for bf16.

    Within a block sums are taken in what their parts have, and behind the last block, of the backbone and of a decoder,
    tokens are float32. Without autocast nothing changes.

    Raises:
        ValueError: the backbone names no blocks.
    """
    blocks = repeated_blocks(model)
    encoder = list(getattr(getattr(model, "backbone", model), "blocks", ()))
    lasts = [encoder[-1], blocks[-1]]  # of the backbone, and of a decoder where there is one

    def before(_block: nn.Module, inputs: tuple) -> tuple:
        z = inputs[0]
        return (z.to(dtype) if torch.is_autocast_enabled(z.device.type) else z, *inputs[1:])

    def behind(last: bool, _block: nn.Module, _inputs: tuple, z: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(z.device.type):
            return z
        return z.float() if last else z.to(dtype)

    for block in blocks:
        block.register_forward_pre_hook(before)
        block.register_forward_hook(partial(behind, block in lasts))


def prepare_blocks(model: nn.Module, compile: bool | str | None, recompute: bool, residual: str | None = None) -> None:
    """Apply the config's ``compile_blocks`` (None: where there is a GPU), ``activation_checkpointing`` and
    ``residual_dtype``."""
    if residual is not None:
        keep_tokens_in(getattr(torch, residual), model)
    if recompute:
        checkpoint_blocks(model)
    if compile is None:
        compile = torch.cuda.is_available() and hasattr(getattr(model, "backbone", None), "blocks")
    if compile == "backbone":
        print_log("the backbone is compiled at the first step, which may take minutes", "current", logging.INFO)
        compile_backbone(model)
    elif compile:
        print_log("the blocks are compiled at the first step, which may take a minute", "current", logging.INFO)
        compile_blocks(model)
