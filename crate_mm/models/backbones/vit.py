"""The ViT that the paper compares CRATE with: torchvision's, as a backbone.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv 2010.11929, by torchvision.
Shapes: B images, C channels, S x S pixels, N patches, d embedding dimensions.
"""

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from ...registry import BACKBONES
from .arch import Arch, resolve_arch

VIT_ARCHS: dict[str, Arch] = {
    "tiny": Arch(embed_dim=192, depth=12, num_heads=3),
    "small": Arch(embed_dim=384, depth=12, num_heads=6),
}


class TappedGELU(nn.GELU):
    """GELU whose output passes ``tap_act``."""

    def __init__(self) -> None:
        super().__init__()
        self.tap_act = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.tap_act(super().forward(x))


@BACKBONES.register_module()
class ViT(VisionTransformer):
    """torchvision's VisionTransformer without its classifier: ``(B, C, S, S) -> (B, 1 + N, d)``, CLS token first.

    The MLPs are 4 d wide. The tokens have passed the final LayerNorm, so a head on them needs none of its own
    (``LinearHead(norm=False)``). Parameters have torchvision's names. ``tap_out`` of each layer passes its tokens,
    ``tap_act`` its MLP's activations ``(B, 1 + N, 4 d)`` (see ``crate_mm.analysis.capture``).

    Args:
        arch: a name of ``VIT_ARCHS`` or a dict with ``embed_dim``, ``depth``, ``num_heads``.
        img_size: height and width of the square images in pixels.
        patch_size: height and width of the square patches in pixels.
        in_channels: image channels C.

    Raises:
        ValueError: unknown ``arch``, sizes that do not divide, or (in forward) images of another size.
    """

    def __init__(
        self, arch: str | dict = "small", img_size: int = 224, patch_size: int = 16, in_channels: int = 3
    ) -> None:
        embed_dim, depth, num_heads = resolve_arch(arch, VIT_ARCHS)
        if not isinstance(img_size, int) or not isinstance(patch_size, int):
            raise ValueError(f"torchvision's ViT takes square images and patches, got {img_size} and {patch_size}")
        if min(img_size, patch_size) < 1 or img_size % patch_size:
            raise ValueError(f"img_size {img_size} is not a whole number of patches of {patch_size} (patch_size)")
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        super().__init__(img_size, patch_size, depth, num_heads, embed_dim, mlp_dim=4 * embed_dim)
        self.embed_dim = embed_dim
        self.in_channels = in_channels
        del self.heads
        self.taps = nn.ModuleList(nn.ModuleDict({"tap_out": nn.Identity()}) for _ in range(depth))
        for layer in self.encoder.layers:
            layer.mlp[1] = TappedGELU()
        if in_channels != 3:
            self.conv_proj = nn.Conv2d(in_channels, embed_dim, patch_size, patch_size)
            nn.init.trunc_normal_(self.conv_proj.weight, std=(in_channels * patch_size**2) ** -0.5)  # torchvision's
            nn.init.zeros_(self.conv_proj.bias)

    @property
    def img_size(self) -> tuple[int, int]:
        return (self.image_size, self.image_size)

    @property
    def position_grids(self) -> dict[str, tuple[int, int]]:
        side = self.image_size // self.patch_size
        return {"encoder.pos_embedding": (side, side)}

    @property
    def blocks(self) -> nn.Sequential:
        return self.encoder.layers

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != (self.in_channels, *self.img_size):
            raise ValueError(
                f"expected images of shape (B, {self.in_channels}, {self.image_size}, {self.image_size}), "
                f"got {tuple(images.shape)}: set img_size and in_channels of the backbone to the data's"
            )
        patches = self._process_input(images)
        z = torch.cat([self.class_token.expand(images.shape[0], -1, -1), patches], dim=1)
        z = self.encoder.dropout(z + self.encoder.pos_embedding)
        for layer, taps in zip(self.encoder.layers, self.taps):
            z = taps["tap_out"](layer(z))
        return self.encoder.ln(z)
