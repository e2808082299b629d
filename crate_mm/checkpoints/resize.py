"""Resize weights that depend on the image size or the patch size.

Shapes: N patches on a grid of rows x columns, h x w pixels of a patch, C channels, d embedding dimensions.
"""

import inspect
import math
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..models.backbone import PatchKernel, Positions
from ..models.layers import resize_positions
from ..registry import BACKBONES
from .unwrap import Checkpoint
from .validate import CheckpointError

MODES = ("bicubic", "bilinear")


class Patch(NamedTuple):
    """Size of a patch in pixels, and its channels."""

    height: int
    width: int
    channels: int


def resize_image(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Interpolate ``(..., C, rows, columns)``, anti-aliased and without aligned corners, as JAX and timm do."""
    real = image if image.dtype == torch.float64 else image.float()
    return F.interpolate(real, size=size, mode=mode, align_corners=False, antialias=True).to(image.dtype)


def resize_position_embedding(
    embedding: Tensor, old: tuple[int, int], new: tuple[int, int], mode: str = "bicubic"
) -> Tensor:
    """Interpolate position embeddings to another grid, ``(1, 1 + N, d) -> (1, 1 + N', d)``, except the CLS token's.

    Args:
        embedding: position embeddings, of the CLS token first, then of the patches row by row.
        old: (rows, columns) of the embedding's grid.
        new: (rows, columns) of the new grid.
        mode: one of ``MODES``.
    """
    return resize_positions(embedding, old, new, partial(resize_image, size=new, mode=mode))


def resize_patch_kernel(kernel: Tensor, order: str, old: Patch, size: tuple[int, int], mode: str) -> Tensor:
    """Interpolate a parameter that has one element per pixel and channel of a patch to another patch size.

    Values are not rescaled, as in CRATE-alpha: with four times the pixels, a projection's output is about four times
    as large. CRATE's LayerNorm after the projection removes this factor.

    Args:
        kernel: the parameter.
        order: dimensions of the parameter, such as 'd C h w', 'd (h w C)' or '(h w C)'.
        old: patch that the parameter is for.
        size: (h, w) of the new patch.
        mode: one of ``MODES``.
    """
    image = "d C h w" if order.startswith("d ") else "1 C h w"
    h, w, C = old
    resized = resize_image(rearrange(kernel, f"{order} -> {image}", h=h, w=w, C=C), size, mode)
    return rearrange(resized, f"{image} -> {order}")


def stored_patch(checkpoint: Checkpoint, kernel: Tensor, order: str) -> Patch | None:
    """Return the patch of a checkpoint's kernel, from the kernel's shape or else the model config; None if unknown.

    Raises:
        CheckpointError: kernel and model config do not agree.
    """
    if order == "d C h w":
        return Patch(*kernel.shape[2:], kernel.shape[1]) if kernel.ndim == 4 else None
    size, channels = (_backbone_argument(checkpoint, key) for key in ("patch_size", "in_channels"))
    pair = _pair(size)
    if pair is None or type(channels) is not int:
        return None
    patch = Patch(*pair, channels)
    if kernel.shape[-1] != patch.height * patch.width * channels:
        raise CheckpointError(
            f"{checkpoint.path}: its model config has patches of {pair[0]} x {pair[1]} pixels in {channels} channels, "
            f"but its weights are for {kernel.shape[-1]} elements per patch"
        )
    return patch


def stored_grid(checkpoint: Checkpoint, embedding: Tensor, grid: tuple[int, int]) -> tuple[int, int]:
    """Return the grid of a checkpoint's position embeddings: from its model config, else the model's, else a square.

    Raises:
        CheckpointError: none of these grids has the number of positions.
    """
    num_patches = embedding.shape[1] - 1
    (H, W), (h, w) = (_pair(_backbone_argument(checkpoint, key)) or (1, 1) for key in ("img_size", "patch_size"))
    if (H // h) * (W // w) == num_patches:
        return H // h, W // w
    side = math.isqrt(num_patches)
    if num_patches == grid[0] * grid[1]:
        return grid
    if side * side != num_patches:
        raise CheckpointError(
            f"{checkpoint.path} has position embeddings for {num_patches} patches, which do not form a square, and "
            "does not give the grid: its meta.model.backbone lacks img_size and patch_size"
        )
    return side, side


def _pair(size: Any) -> tuple[int, int] | None:
    """Return height and width of a checkpoint's size, or None if the size is not valid."""
    pair = (size, size) if isinstance(size, int) else size
    valid = isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(n) is int and n > 0 for n in pair)
    return tuple(pair) if valid else None


def _backbone_argument(checkpoint: Checkpoint, key: str) -> Any:
    """Return a backbone argument from a checkpoint's model config, else its default, else None."""
    backbone = (checkpoint.model or {}).get("backbone")
    backbone = backbone if isinstance(backbone, dict) else {}
    kind = backbone.get("type")
    registered = BACKBONES.registered(kind) if isinstance(kind, str) else None
    parameter = registered and inspect.signature(registered).parameters.get(key)
    default = parameter.default if parameter and parameter.default is not inspect.Parameter.empty else None
    return backbone.get(key, default)


def fit_positions(checkpoint: Checkpoint, embedding: Tensor, new: Positions, mode: str) -> tuple[Tensor, str]:
    """Return a checkpoint's position embeddings on the model's grid, and a description of the change ('' if none)."""
    old = stored_grid(checkpoint, embedding, new.grid)
    resize = new.resize or partial(resize_position_embedding, mode=mode)
    change = f"{old[0]} x {old[1]} -> {new.grid[0]} x {new.grid[1]} patches, {mode}"
    return resize(embedding, old, new.grid), "" if old == new.grid else change


def fit_patch_kernel(
    checkpoint: Checkpoint, kernel: Tensor, expected: Tensor, new: PatchKernel, mode: str | None
) -> tuple[Tensor | None, str]:
    """Return a checkpoint's kernel at the model's patch size (None if unusable), and a description of the change.

    Args:
        checkpoint: the kernel's checkpoint.
        kernel: the checkpoint's kernel.
        expected: the model's kernel.
        new: the model's patch, and the dimensions of both kernels.
        mode: the setting ``resize_patches``.

    Raises:
        CheckpointError: the patch size differs or is unknown, and ``mode`` does not resolve it.
    """
    source, old = checkpoint.path, stored_patch(checkpoint, kernel, new.order)
    shape, size = tuple(kernel.shape), (new.height, new.width)
    same_width = kernel.ndim == 1 or kernel.shape[0] == expected.shape[0]
    if old in (None, new[1:]) and shape == tuple(expected.shape):
        return kernel, ""
    other_channels = old.channels != new.channels if old else shape[-1] % new.channels
    if not same_width or other_channels or mode == "new":
        return None, ""
    if old is None:
        raise CheckpointError(
            f"{source} has {shape[-1]} elements per patch, the model {expected.shape[-1]}, and its patch size is "
            "unknown: resize_patches='new' in the config reinitializes the patch embedding"
        )
    change = f"{old.height} x {old.width} -> {size[0]} x {size[1]} pixels per patch, {mode}"
    if mode is None:
        raise CheckpointError(
            f"{source} has patches of {old.height} x {old.width} pixels, the model of {size[0]} x {size[1]}: "
            "resize_patches='bilinear' in the config resizes the patch embedding, 'new' reinitializes it"
        )
    return resize_patch_kernel(kernel, new.order, old, size, mode), change
