"""What a backbone of patches with a CLS token says of itself, all of which its embedding knows."""

from typing import ClassVar

from torch import Tensor, nn

from ..layers import PatchTokens


class PatchBackbone(nn.Module):
    """A backbone with an ``embedding`` of images and layers, ``blocks``: ``(B, C, H, W) -> (B, 1 + N, d)``.

    ``positions`` names the embedding's positions; ``kernels`` what of it has a number for each pixel and channel of a
    patch, each with the order of its dimensions. A transfer resizes both (``checkpoints/resize.py``). ``stem`` names
    what stands before the blocks, which learns most slowly where the rate falls from layer to layer.
    """

    positions: ClassVar[str] = "pos_embed"
    kernels: ClassVar[dict[str, str]] = {"proj.weight": "d C h w"}
    stem: ClassVar[tuple[str, ...]] = ("embedding",)
    embedding: nn.Module
    blocks: nn.ModuleList

    @property
    def img_size(self) -> tuple[int, int]:
        return self.embedding.img_size

    @property
    def patch_size(self) -> tuple[int, int]:
        return self.embedding.patch_size

    @property
    def in_channels(self) -> int:
        return self.embedding.in_channels

    @property
    def position_grids(self) -> dict[str, tuple[int, int]]:
        """The positions by name, with the (rows, columns) of patches that they are for."""
        return {f"embedding.{self.positions}": self.embedding.grid_size}

    @property
    def patch_kernels(self) -> dict[str, str]:
        """``kernels``, by their names in the backbone."""
        return {f"embedding.{name}": order for name, order in self.kernels.items()}

    @property
    def patch_tokens(self) -> PatchTokens:
        """Which of the tokens in the layers are patches: those behind the CLS token."""
        return PatchTokens(1, *self.embedding.grid_size)

    def fuse(self) -> "PatchBackbone":
        """Compute once what depends on the weights alone, where a layer has such: ISTA folds its dictionary into one
        matrix. A fused model refuses to train."""
        for block in self.blocks:
            block.fuse()
        return self

    def forward(self, images: Tensor) -> Tensor:
        z = self.embedding(images)
        for block in self.blocks:
            z = block(z)
        return z
