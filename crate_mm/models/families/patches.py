"""Base class of patch backbones with a CLS token, which read their sizes from the embedding."""

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from ..backbone import Backbone, InputSpec, PatchKernel, Positions
from ..layers import TokenLayout
from ..layers.tokens import PositionedEmbedding


class PatchBackbone(Backbone):
    """A backbone with an ``embedding`` of images and ``blocks``: ``(B, C, H, W) -> (B, 1 + N, d)``, CLS token first.

    Attributes:
        prefix: number of tokens before the patches in the layers.
        positions: name of the position tensor in ``embedding``, or None.
        resize: ``Positions.resize`` for a transfer; None for interpolation.
        kernels: tensors of ``embedding`` with one element per pixel and channel of a patch -> dimension order.
        any_size: whether images of other sizes than ``img_size`` are accepted; see ``interpolate_positions``.
    """

    prefix: ClassVar[int] = 1
    positions: ClassVar[str | None] = "pos_embed"
    resize: ClassVar[Callable | None] = None
    kernels: ClassVar[dict[str, str]] = {"proj.weight": "d C h w"}
    any_size: bool = False
    stem: tuple[str, ...] = ("embedding",)
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
    def input_spec(self) -> InputSpec:
        return InputSpec(self.in_channels, self.img_size, self.any_size)

    def layout(self, inputs: Tensor) -> TokenLayout:
        """Return the grid of the patches, which follow the prefix."""
        (h, w), (H, W) = self.patch_size, inputs.shape[-2:]
        return TokenLayout(self.prefix, H // h, W // w)

    def resizable(self) -> dict[str, Positions | PatchKernel]:
        grid, patch = self.embedding.grid_size, (*self.patch_size, self.in_channels)
        kernels = {f"embedding.{name}": PatchKernel(order, *patch) for name, order in self.kernels.items()}
        positions = {f"embedding.{self.positions}": Positions(grid, self.resize)} if self.positions else {}
        return {**positions, **kernels}

    def interpolate_positions(self) -> bool:
        if isinstance(self.embedding, PositionedEmbedding):
            self.any_size = self.embedding.any_size = True
        return self.any_size

    def forward(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """Return the tokens of images.

        Args:
            images: ``(B, C, H, W)``.
            mask: ``(B, N)``, true for masked patches (default: none).
            mask_token: ``(1, 1, d)``, the replacement of masked patches.
        """
        masked = () if mask is None else (mask, mask_token)
        z, layout = self.embedding(images, *masked), self.layout(images)
        for block in self.blocks:
            z = block(z, layout)
        return z
