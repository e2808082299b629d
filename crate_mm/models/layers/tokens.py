"""Patch embeddings with CLS token and position embedding.

Shapes: B images, C channels, H x W pixels, N patches of h x w pixels, d embedding dimensions.
"""

from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Size = int | tuple[int, int]  # height and width, one number if square


def to_pair(size: Size) -> tuple[int, int]:
    """Return ``(height, width)`` from one number or a pair of numbers."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def patch_grid(img_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the patches of an image; raise ``ValueError`` unless they are integers."""
    (H, W), (h, w) = img_size, patch_size
    # PyTorch 2.6 cannot export min() of dynamic sizes.
    if any(side < 1 for side in (H, W, h, w)) or H % h or W % w:
        raise ValueError(f"img_size {H} x {W} is not a whole number of patches of {h} x {w} (patch_size)")
    return H // h, W // w


def check_images(images: Tensor, in_channels: int, img_size: tuple[int, int]) -> None:
    """Raise ``ValueError`` unless images are ``(B, C, H, W)`` of these sizes."""
    if tuple(images.shape[1:]) != (in_channels, *img_size):
        raise ValueError(
            f"expected images of shape (B, {in_channels}, {img_size[0]}, {img_size[1]}), "
            f"got {tuple(images.shape)}: set img_size and in_channels of the backbone to match the data"
        )


def mask_patches(patches: Tensor, mask: Tensor | None, mask_token: Tensor | None) -> Tensor:
    """Replace the embeddings of masked patches, ``(B, N, d)``, before the positions are added.

    Args:
        patches: embeddings.
        mask: ``(B, N)``, true for the patches to replace; None to replace no patch.
        mask_token: ``(1, 1, d)``, the replacement.
    """
    return patches if mask is None else torch.where(mask[..., None], mask_token.to(patches.dtype), patches)


def resize_positions(
    positions: Tensor, old: tuple[int, int], new: tuple[int, int], interpolate: Callable[[Tensor], Tensor]
) -> Tensor:
    """Resize patch positions to another grid, ``(1, 1 + N, d) -> (1, 1 + N', d)``; the CLS token's position stays.

    Args:
        positions: CLS token first, then the patches row by row.
        old, new: (rows, columns) of both grids.
        interpolate: resizes ``(1, d, rows, columns)``, in float32 or float64, to the new grid.
    """
    if old == new:
        return positions
    grid = positions[:, 1:].unflatten(1, old).permute(0, 3, 1, 2)
    resized = interpolate(grid if grid.dtype == torch.float64 else grid.float())
    return torch.cat([positions[:, :1], resized.to(positions.dtype).flatten(2).mT], dim=1)


def resize_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize positions to another grid, ``(1, 1 + N, d) -> (1, 1 + N', d)``; the CLS row stays.

    Interpolation is bicubic, without anti-aliasing or aligned corners. As in the code of DINO and MAE, the scale factor
    of each side is ``(g' + 0.1) / g``, so the samples are slightly closer together than for ``g' / g``.

    Args:
        table: CLS token first, then the patches row by row.
        old: (rows, columns) of the table.
        new: (rows, columns) of the result.
    """
    scale = tuple((to + 0.1) / size for size, to in zip(old, new))

    def enlarge(grid: Tensor) -> Tensor:
        return F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)[..., : new[0], : new[1]]

    return resize_positions(table, old, new, enlarge)


class PatchEmbedding(nn.Module):
    """Base class of patch embeddings: the sizes of images and patches.

    Args:
        img_size: image height and width H, W in pixels, one number if square.
        patch_size: patch height and width h, w in pixels, one number if square.
        in_channels: C.

    Raises:
        ValueError: the patch size does not divide the image size.
    """

    def __init__(self, img_size: Size, patch_size: Size, in_channels: int) -> None:
        super().__init__()
        self.img_size = to_pair(img_size)
        self.patch_size = to_pair(patch_size)
        self.in_channels = in_channels
        self.grid_size = patch_grid(self.img_size, self.patch_size)

    @property
    def num_patches(self) -> int:
        return self.grid_size[0] * self.grid_size[1]


class PositionedEmbedding(PatchEmbedding):
    """Base class of patch embeddings with a CLS token and positions ``pos_embed``: ``(B, C, H, W) -> (B, 1 + N, d)``.

    Attributes:
        any_size: whether images of other sizes are accepted, with interpolated positions.

    Raises:
        ValueError: as ``PatchEmbedding``, or (in forward) an image has another size.
    """

    any_size: bool = False
    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Return the embeddings of the patches, ``(B, N, d)``, without their positions."""

    def forward(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """Return the tokens; ``mask`` and ``mask_token`` are as for ``mask_patches``."""
        positions = self.positions_for(images)
        tokens = mask_patches(self.embed(images), mask, mask_token)
        return torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1) + positions

    def positions_for(self, images: Tensor) -> Tensor:
        """Return the positions for images, ``(1, 1 + N', d)``; raise ``ValueError`` for images that do not fit."""
        size = tuple(images.shape[-2:]) if self.any_size else self.img_size
        check_images(images, self.in_channels, size)
        return resize_table(self.pos_embed, self.grid_size, patch_grid(size, self.patch_size))


class TokenEmbedding(PositionedEmbedding):
    """Embed an image as tokens: ``(B, C, H, W) -> (B, 1 + N, d)``, CLS token first.

    A patch is flattened in the order (row in patch, column in patch, channel), normalized, projected to ``d`` and
    normalized again. CLS token and position embedding are learned and initialized from a standard normal.
    """

    def __init__(self, img_size: Size, patch_size: Size, in_channels: int, embed_dim: int) -> None:
        super().__init__(img_size, patch_size, in_channels)
        patch_dim = self.patch_size[0] * self.patch_size[1] * in_channels
        self.patch_norm = nn.LayerNorm(patch_dim)
        self.proj = nn.Linear(patch_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + self.num_patches, embed_dim))

    def embed(self, images: Tensor) -> Tensor:
        h, w = self.patch_size
        patches = rearrange(images, "B C (gh h) (gw w) -> B (gh gw) (h w C)", h=h, w=w)
        return self.norm(self.proj(self.patch_norm(patches)))


class ConvEmbedding(PositionedEmbedding):
    """Embed an image as tokens by one convolution: ``(B, C, H, W) -> (B, 1 + N, d)``, CLS token first.

    The convolution has a bias and no LayerNorm. CLS token and position embedding are learned. Initialization is that of
    CRATE-alpha's JAX code: Kaiming-uniform kernel, zero bias, normal positions (std 0.02) and CLS token (std 1e-6).
    """

    def __init__(self, img_size: Size, patch_size: Size, in_channels: int, embed_dim: int) -> None:
        super().__init__(img_size, patch_size, in_channels)
        self.proj = nn.Conv2d(in_channels, embed_dim, self.patch_size, self.patch_size)
        self.cls_token = nn.Parameter(1e-6 * torch.randn(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + self.num_patches, embed_dim))
        nn.init.kaiming_uniform_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def embed(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).mT
