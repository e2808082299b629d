"""From image to tokens: patches, CLS token, position embedding.

Shapes: B images, C channels, H x W pixels, N patches of h x w pixels, d embedding dimensions.
"""

import torch
from einops import rearrange
from torch import Tensor, nn


def to_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return ``(height, width)`` from one number or a pair of numbers."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


class TokenEmbedding(nn.Module):
    """Embed an image as tokens: ``(B, C, H, W) -> (B, 1 + N, d)``, CLS token first.

    A patch is flattened in the order (row in patch, column in patch, channel), normalised, projected to ``d``
    and normalised again. CLS token and position embedding are learned and start standard normal.

    Raises:
        ValueError: the patch size does not divide the image size, or (in forward) an image has another size.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        in_channels: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        self.img_size = to_pair(img_size)
        self.patch_size = to_pair(patch_size)
        self.in_channels = in_channels
        (H, W), (h, w) = self.img_size, self.patch_size
        if min(H, W, h, w) < 1 or H % h or W % w:
            raise ValueError(f"img_size {H} x {W} is not a whole number of patches of {h} x {w} (patch_size)")
        self.grid_size = (H // h, W // w)
        num_patches = self.grid_size[0] * self.grid_size[1]
        patch_dim = h * w * in_channels

        self.patch_norm = nn.LayerNorm(patch_dim)
        self.proj = nn.Linear(patch_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + num_patches, embed_dim))

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != (self.in_channels, *self.img_size):
            raise ValueError(
                f"expected images of shape (B, {self.in_channels}, {self.img_size[0]}, {self.img_size[1]}), "
                f"got {tuple(images.shape)}: set img_size and in_channels of the backbone to the data's"
            )
        h, w = self.patch_size
        patches = rearrange(images, "B C (gh h) (gw w) -> B (gh gw) (h w C)", h=h, w=w)
        tokens = self.norm(self.proj(self.patch_norm(patches)))
        cls_token = self.cls_token.expand(tokens.shape[0], -1, -1)
        return torch.cat([cls_token, tokens], dim=1) + self.pos_embed
