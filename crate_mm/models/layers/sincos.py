"""Patch embedding of a masked autoencoder: one convolution and a fixed sin-cos position table.

Shapes: B images, C channels, H x W pixels, N patches of h x w pixels on a grid of rows x columns, d embedding
dimensions.
"""

import torch
from torch import Tensor, nn

from .tokens import PositionedEmbedding, Size, resize_table


def sincos_table(grid: tuple[int, int], embed_dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return the fixed position table of a grid, ``(1, 1 + N, d)``, CLS token first, patches row by row.

    The CLS token's row is zero. The row of the patch at row r and column c (from 0) is
    ``[sin(c w), cos(c w), sin(r w), cos(r w)]``, each d / 4 wide, with ``w_i = 10000^(-i / (d / 4))``. The table is
    computed in float64 and then rounded.

    Source: the official CRATE-MAE code, which takes it from He et al., "Masked Autoencoders Are Scalable Vision
    Learners", CVPR 2022.

    Args:
        grid: rows and columns.
        embed_dim: d.
        dtype: dtype of the table (default: PyTorch's default dtype).

    Raises:
        ValueError: 4 does not divide d.
    """
    if embed_dim % 4:
        raise ValueError(f"sin-cos positions need an embed_dim divisible by 4, got {embed_dim}")
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    w = 10000 ** -(torch.arange(embed_dim // 4, dtype=torch.float64) / (embed_dim / 4))
    by_row, by_column = (torch.cat([(x := side[:, None] * w).sin(), x.cos()], dim=1) for side in (rows, columns))
    patches = torch.cat([by_column.repeat(grid[0], 1), by_row.repeat_interleave(grid[1], dim=0)], dim=1)
    table = torch.cat([torch.zeros(1, embed_dim, dtype=torch.float64), patches])[None]
    return table.to(dtype or torch.get_default_dtype())


class SinCosEmbedding(PositionedEmbedding):
    """Embed an image as tokens: ``(B, C, H, W) -> (B, 1 + N, d)``, CLS token first.

    A convolution without LayerNorm embeds the patches. The position table is fixed but part of the state dict: after
    further training at another image size, the table is interpolated (see ``resize_table``) and differs from the
    formula. For an image of another size than ``img_size``, positions are interpolated from the table.

    Args:
        img_size: height and width of the images that the table is for, one number if square.
        patch_size: height and width of a patch, one number if square.
        in_channels: C.
        embed_dim: d.

    Raises:
        ValueError: the patch size does not divide the image size, 4 does not divide d, or (in forward) the size or
            channels of an image do not match.
    """

    def __init__(self, img_size: Size, patch_size: Size, in_channels: int, embed_dim: int) -> None:
        super().__init__(img_size, patch_size, in_channels)
        self.proj = nn.Conv2d(in_channels, embed_dim, self.patch_size, self.patch_size)
        nn.init.xavier_uniform_(self.proj.weight.data.view(embed_dim, -1))
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, embed_dim))
        self.register_buffer("pos_table", sincos_table(self.grid_size, embed_dim))

    def _apply(self, fn, recurse: bool = True) -> "SinCosEmbedding":
        """Apply a cast or move; a cast to float64 recomputes a table that equals the formula."""
        before = self.pos_table
        super()._apply(fn, recurse)
        after = self.pos_table
        if after.dtype == torch.float64 != before.dtype and not (before.is_meta or after.is_meta):
            formula = sincos_table(self.grid_size, before.shape[2], torch.float64).to(before.device)
            if torch.equal(before, formula.to(before.dtype)):
                after.copy_(formula)
        return self

    def embed(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).mT

    def positions_for(self, images: Tensor) -> Tensor:
        h, w = self.patch_size
        H, W = images.shape[-2:]
        if images.ndim != 4 or images.shape[1] != self.in_channels or not H or not W or H % h or W % w:
            raise ValueError(
                f"expected images of shape (B, {self.in_channels}, H, W) in whole patches of {h} x {w}, "
                f"got {tuple(images.shape)}: set in_channels and patch_size of the backbone to match the data"
            )
        # Compare pixels, not patches: torch.export then knows that height and width are fixed.
        native = (H, W) == self.img_size
        return self.pos_table if native else resize_table(self.pos_table, self.grid_size, (H // h, W // w))
