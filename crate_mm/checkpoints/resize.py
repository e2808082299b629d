"""Weights that depend on the image's or the patch's size, taken to another size.

Shapes: N patches on a grid of rows x columns, h x w pixels of a patch, C channels, d embedding dimensions.
"""

import inspect
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..registry import BACKBONES
from .unwrap import Checkpoint
from .validate import CheckpointError

MODES = ("bicubic", "bilinear")


class Patch(NamedTuple):
    """The pixels and channels of a patch."""

    height: int
    width: int
    channels: int


def resize_image(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Interpolate ``(..., C, rows, columns)`` to a size, with the corners not aligned; where it shrinks, averaged over
    (anti-aliased), as JAX's and timm's do."""
    real = image if image.dtype == torch.float64 else image.float()
    return F.interpolate(real, size=size, mode=mode, align_corners=False, antialias=True).to(image.dtype)


def resize_position_embedding(
    embedding: Tensor, old: tuple[int, int], new: tuple[int, int], mode: str = "bicubic"
) -> Tensor:
    """Interpolate position embeddings to another grid, ``(1, 1 + N, d) -> (1, 1 + N', d)``; the CLS token's is kept.

    Args:
        embedding: CLS token first, then the patches row by row.
        old: (rows, columns) of the embedding's grid.
        new: (rows, columns) wanted.
        mode: of ``MODES``.
    """
    if old == new:
        return embedding
    cls_token, patches = embedding[:, :1], embedding[:, 1:]
    image = patches.unflatten(1, old).permute(0, 3, 1, 2)
    return torch.cat([cls_token, resize_image(image, new, mode).flatten(2).mT], dim=1)


def resize_patch_kernel(kernel: Tensor, order: str, old: Patch, size: tuple[int, int], mode: str) -> Tensor:
    """Interpolate what has a number for each pixel and channel of a patch to patches of another size.

    The numbers are not rescaled (CRATE-alpha's way): on a patch of four times the pixels, a projection's output is
    about four times as large. CRATE's LayerNorm after the projection takes that away.

    Args:
        kernel: of the dimensions that ``order`` names.
        order: such as 'd C h w', 'd (h w C)' or '(h w C)'.
        old: the patch that it is for.
        size: (h, w) wanted.
        mode: of ``MODES``.
    """
    image = "d C h w" if order.startswith("d ") else "1 C h w"
    h, w, C = old
    resized = resize_image(rearrange(kernel, f"{order} -> {image}", h=h, w=w, C=C), size, mode)
    return rearrange(resized, f"{image} -> {order}")


def stored_patch(checkpoint: Checkpoint, kernel: Tensor, order: str) -> Patch | None:
    """The patch that a checkpoint's kernel is for: by its shape, or else by what the checkpoint says of itself; None
    where neither tells.

    Raises:
        CheckpointError: the two do not agree.
    """
    if order == "d C h w":
        return Patch(*kernel.shape[2:], kernel.shape[1]) if kernel.ndim == 4 else None
    size, channels = (_described(checkpoint, key) for key in ("patch_size", "in_channels"))
    pair = (size, size) if isinstance(size, int) else size
    whole = isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(n) is int and n > 0 for n in pair)
    if not whole or type(channels) is not int:
        return None
    patch = Patch(*pair, channels)
    if kernel.shape[-1] != patch.height * patch.width * channels:
        raise CheckpointError(
            f"{checkpoint.path} says that its patches are of {pair[0]} x {pair[1]} pixels in {channels} channels, but "
            f"its weights are for {kernel.shape[-1]} numbers a patch"
        )
    return patch


def _described(checkpoint: Checkpoint, key: str) -> Any:
    """An argument of the backbone that a checkpoint describes, the default where it does not name it, or None."""
    backbone = (checkpoint.model or {}).get("backbone")
    kind = backbone.get("type") if isinstance(backbone, dict) else None
    if not isinstance(kind, str):
        return None
    registered = BACKBONES.registered(kind)
    parameter = registered and inspect.signature(registered).parameters.get(key)
    default = parameter.default if parameter and parameter.default is not inspect.Parameter.empty else None
    return backbone.get(key, default)


def adapt_patch_kernel(
    kernel: Tensor, wanted: Tensor, order: str, old: Patch | None, new: Patch, mode: str | None, source: str
) -> tuple[Tensor | None, str]:
    """A checkpoint's kernel for a model's patches, or None if it cannot be taken over; and what became of it.

    Args:
        kernel: the checkpoint's.
        wanted: the model's.
        order: of the dimensions of both.
        old: the checkpoint's patch, None if not known.
        new: the model's.
        mode: the setting ``resize_patches``.
        source: the checkpoint, for messages.

    Raises:
        CheckpointError: patches are of another size, and the setting does not say what to do, or they are unknown.
    """
    shape, size = tuple(kernel.shape), (new.height, new.width)
    same_width = kernel.ndim == 1 or kernel.shape[0] == wanted.shape[0]
    if (old in (None, new)) and shape == tuple(wanted.shape):
        return kernel, ""
    if not same_width or (old and old.channels != new.channels) or (not old and shape[-1] % new.channels):
        return None, ""
    if mode == "new":
        return None, ""
    if old is None:
        raise CheckpointError(
            f"{source} has {shape[-1]} numbers a patch where the model has {wanted.shape[-1]}, and does not say of "
            "which patches: resize_patches='new' in the config starts the patch embedding anew"
        )
    change = f"{old.height} x {old.width} -> {size[0]} x {size[1]} pixels a patch, {mode}"
    if mode is None:
        raise CheckpointError(
            f"{source} has patches of {old.height} x {old.width} pixels, the model of {size[0]} x {size[1]}: "
            "resize_patches='bilinear' in the config resizes the patch embedding, 'new' starts it anew"
        )
    return resize_patch_kernel(kernel, order, old, size, mode), change
