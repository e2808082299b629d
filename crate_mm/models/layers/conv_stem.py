"""Convolutional patch embeddings: with Fourier positions (ToST, XCiT) or learned positions (CBT).

Shapes: B images, C channels, H x W pixels, N = h w patches on a grid of h x w, d embedding dimensions.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from .tokens import PatchEmbedding, PositionedEmbedding, Size, patch_grid


class FourierPositions(nn.Module):
    """Position embedding of a grid of any size: ``(h, w) -> (1, d, h, w)``.

    The coordinates are ``(i + 1) / (side + 1e-6) * 2 pi``. Each is divided by ``temperature^(2j / frequencies)``. Sine
    and cosine alternate. The row's channels precede the column's. A 1 x 1 convolution projects them to d channels.

    Args:
        embed_dim: d.
        frequencies: channels of each coordinate.
        temperature: base of the frequencies.
    """

    def __init__(self, embed_dim: int, frequencies: int = 32, temperature: float = 10000.0) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.temperature = temperature
        self.proj = nn.Conv2d(2 * frequencies, embed_dim, 1)

    def forward(self, h: int, w: int) -> Tensor:
        weight = self.proj.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        indices = torch.arange(self.frequencies // 2, device=weight.device, dtype=dtype)
        periods = self.temperature ** (2 * indices / self.frequencies)

        def waves(side: int) -> Tensor:  # (side, frequencies)
            angles = torch.arange(1, side + 1, device=weight.device, dtype=dtype) / (side + 1e-6) * (2 * math.pi)
            angles = angles[:, None] / periods
            return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)

        rows, columns = waves(h)[:, None].expand(-1, w, -1), waves(w)[None].expand(h, -1, -1)
        return self.proj(torch.cat([rows, columns], dim=-1).permute(2, 0, 1)[None].to(weight.dtype))


def conv_stages(patch_size: int, in_channels: int, embed_dim: int) -> nn.Sequential:
    """Return convolutions from images to a grid of patches, ``(B, C, H, W) -> (B, d, h, w)``.

    3 x 3 convolutions with stride 2 and no bias, each followed by BatchNorm, with GELU between them: four for patches
    of 16 pixels (d/8, d/4, d/2, d channels), three for patches of 8.

    Raises:
        ValueError: ``patch_size`` is neither 8 nor 16, or d is not a multiple of ``patch_size / 2``.
    """
    if patch_size not in (8, 16):
        raise ValueError(f"patch_size of the convolutional stem must be 8 or 16, got {patch_size!r}")
    halvings = patch_size.bit_length() - 1
    if embed_dim % 2 ** (halvings - 1):
        raise ValueError(
            f"embed_dim {embed_dim} is not divisible by {2 ** (halvings - 1)}, as the stem's widths require"
        )
    widths = [in_channels, *(embed_dim // 2**n for n in reversed(range(halvings)))]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        layers += [nn.Sequential(convolution, nn.BatchNorm2d(after)), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class ConvStem(PatchEmbedding):
    """Embed an image as tokens, without a CLS token: ``(B, C, H, W) -> (B, N, d)``.

    Fourier positions are added to the output of ``conv_stages``. An image may have any size that the patch size
    divides.

    BatchNorm's running statistics are part of the weights and change in training.

    Args:
        img_size: nominal height and width of the images; other sizes work too.
        patch_size: 8 or 16.
        in_channels: C.
        embed_dim: d.

    Raises:
        ValueError: as for ``conv_stages``, or (in forward) the size or channels of an image do not match.
    """

    def __init__(self, img_size: Size, patch_size: int, in_channels: int, embed_dim: int) -> None:
        stem = conv_stages(patch_size, in_channels, embed_dim)
        super().__init__(img_size, patch_size, in_channels)
        self.stem = stem
        self.positions = FourierPositions(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"expected images of shape (B, {self.in_channels}, H, W), got {tuple(images.shape)}: set in_channels "
                "of the backbone to match the data"
            )
        patch_grid((images.shape[2], images.shape[3]), self.patch_size)
        grid = self.stem(images)
        return (grid + self.positions(grid.shape[2], grid.shape[3])).flatten(2).mT


class ConvStemWithCLS(PositionedEmbedding):
    """Embed an image as tokens: ``(B, C, H, W) -> (B, 1 + N, d)``, CLS token first.

    As ``ConvStem``, but with a CLS token, and with learned positions in place of the computed ones. Both are
    initialized from a standard normal.

    Raises:
        ValueError: as ``ConvStem``, or (in forward) an image has another size.
    """

    def __init__(self, img_size: Size, patch_size: int, in_channels: int, embed_dim: int) -> None:
        stem = conv_stages(patch_size, in_channels, embed_dim)
        super().__init__(img_size, patch_size, in_channels)
        self.stem = stem
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + self.num_patches, embed_dim))

    def embed(self, images: Tensor) -> Tensor:
        return self.stem(images).flatten(2).mT
