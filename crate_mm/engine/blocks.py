"""What is done to a model's repeated blocks: compiling them, and recomputing them in the backward pass."""

import logging
from functools import partial

import torch
from mmengine.logging import print_log
from torch import nn
from torch.utils.checkpoint import checkpoint


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

    What stands between the blocks stays eager. The first step of each input shape compiles.

    Raises:
        ValueError: the backbone names no blocks.
    """
    for block in repeated_blocks(model):
        block.compile()


def checkpoint_blocks(model: nn.Module) -> None:
    """Keep only the blocks' inputs for the backward pass and compute the rest again: less memory, a third more work.

    Raises:
        ValueError: the backbone names no blocks.
    """
    for block in repeated_blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def prepare_blocks(model: nn.Module, compile: bool | None, recompute: bool) -> None:
    """Apply the config's ``compile_blocks`` (None: where there is a GPU) and ``activation_checkpointing``."""
    if recompute:
        checkpoint_blocks(model)
    if compile is None:
        compile = torch.cuda.is_available() and hasattr(getattr(model, "backbone", None), "blocks")
    if compile:
        print_log("the blocks are compiled at the first step, which may take a minute", "current", logging.INFO)
        compile_blocks(model)
