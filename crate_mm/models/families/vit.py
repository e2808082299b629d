"""The ViT that the paper compares CRATE with: torchvision's, as a backbone.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv 2010.11929, by torchvision.
Shapes: B images, C channels, H x W pixels, N patches, d embedding dimensions, K heads.
"""

from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import EncoderBlock

from ...registry import BACKBONES
from ..arch import Arch, Sizes, resolve_arch
from ..backbone import Backbone, InputSpec, PatchKernel, Positions
from ..layers import Compression, DropPath, Layer, Map, TokenLayout, check_images, drop_path_rates, scaled_similarity
from .foreign import NORMALISED, Translation, count_layers, heads_of, image_size, rename, shape_of

VIT_ARCHS: dict[str, Arch] = {
    "tiny": Arch(embed_dim=192, depth=12, num_heads=3),
    "small": Arch(embed_dim=384, depth=12, num_heads=6),
}
# (width, depth) -> heads of the models whose weights torchvision publishes: ViT-B, L and H.
TORCHVISION_HEADS = {(768, 12): 12, (1024, 24): 16, (1280, 32): 16}
TORCHVISION = "torchvision's VisionTransformer"
KEY_MAP = (
    (r"heads\.head\.(weight|bias)", r"head.fc.\1"),
    (r"(class_token|conv_proj\..*|encoder\..*)", r"backbone.\1"),
)


class TappedGELU(nn.GELU):
    """GELU whose output passes ``tap_act``."""

    def __init__(self) -> None:
        super().__init__()
        self.tap_act = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.tap_act(super().forward(x))


class TappedAttention(nn.MultiheadAttention, Compression):
    """PyTorch's self-attention whose input passes ``tap_w``. It has no subspaces: R^c is not defined for it."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **kwargs) -> tuple[Tensor, Tensor | None]:
        tapped = self.tap_w(query)
        return super().forward(tapped, tapped, tapped, **kwargs)

    def maps(self, w: Tensor, layout: TokenLayout | None = None) -> dict[str, Map]:
        q, k, _ = F.linear(w, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        return {"attention": Map(scaled_similarity(q, k, self.num_heads))}


class TappedEncoderBlock(EncoderBlock, Layer):
    """torchvision's layer with taps: ``tap_w``, ``tap_act`` (the MLP's activations, ``(B, 1 + N, 4 d)``), ``tap_out``.

    Its parameters are those of the layer that it is made from, under the same names.
    """

    def __init__(self, made_from: EncoderBlock, num_heads: int, embed_dim: int, drop_path: float = 0.0) -> None:
        with torch.device("meta"):
            super().__init__(num_heads, embed_dim, 4 * embed_dim, 0.0, 0.0, partial(nn.LayerNorm, eps=1e-6))
            self.self_attention = TappedAttention(embed_dim, num_heads, batch_first=True)
        self.load_state_dict(made_from.state_dict(), assign=True)
        self.mlp[1] = TappedGELU()
        if drop_path:  # in the places of the two dropouts that stand last before an addition, and have no effect here
            self.dropout, self.mlp[-1] = DropPath(drop_path), DropPath(drop_path)
        self.tap_out = nn.Identity()
        # Not a second registration, which would give its parameters a second name.
        self.__dict__["compress"] = self.self_attention

    def taps(self) -> dict[str, nn.Module]:
        return {**super().taps(), "tap_act": self.mlp[1].tap_act}

    def forward(self, z: Tensor, layout: TokenLayout | None = None) -> Tensor:
        return self.tap_out(super().forward(z))


@BACKBONES.register_module()
class ViT(VisionTransformer, Backbone):
    """torchvision's VisionTransformer without its classifier: ``(B, C, H, W) -> (B, 1 + N, d)``, CLS token first.

    The MLPs are 4 d wide. The tokens have passed the final LayerNorm, so a head on them needs none of its own
    (``LinearHead(norm=False)``). Parameters have torchvision's names.

    Args:
        arch: a name of ``VIT_ARCHS`` or a dict with ``embed_dim``, ``depth``, ``num_heads``.
        img_size: image height and width in pixels, one number if square; torchvision's own takes square ones alone.
        patch_size: height and width of the square patches in pixels.
        in_channels: image channels C.
        drop_path: the probability, in the last layer, that a sample goes without a step (stochastic depth).
        drop_path_rule: 'linear', from 0 in the first layer, or 'constant'.

    Raises:
        ValueError: unknown ``arch``, sizes that do not divide, no such ``drop_path``, or (in forward) images of another
            size.
    """

    sizes = Sizes("vit", VIT_ARCHS)
    head_settings: ClassVar[dict] = {"norm": False}  # the tokens have passed a LayerNorm
    stem = ("class_token", "conv_proj", "encoder.pos_embedding")

    def __init__(
        self,
        arch: str | dict = "small",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        drop_path: float = 0.0,
        drop_path_rule: str = "linear",
    ) -> None:
        embed_dim, depth, num_heads = resolve_arch(arch, VIT_ARCHS)
        H, W = (img_size, img_size) if isinstance(img_size, int) else img_size
        if not isinstance(patch_size, int):
            raise ValueError(f"torchvision's ViT takes square patches, got {patch_size}")
        if min(H, W, patch_size) < 1 or H % patch_size or W % patch_size:
            raise ValueError(f"img_size {img_size} is not a whole number of patches of {patch_size} (patch_size)")
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        super().__init__(H, patch_size, depth, num_heads, embed_dim, mlp_dim=4 * embed_dim)
        self.embed_dim = embed_dim
        self.img_size = (H, W)
        if H != W:
            positions = 1 + (H // patch_size) * (W // patch_size)
            self.encoder.pos_embedding = nn.Parameter(torch.empty(1, positions, embed_dim).normal_(std=0.02))
        self.in_channels = in_channels
        del self.heads
        rates = drop_path_rates(drop_path, depth, drop_path_rule)
        for rate, (name, layer) in zip(rates, list(self.encoder.layers.named_children())):
            setattr(self.encoder.layers, name, TappedEncoderBlock(layer, num_heads, embed_dim, rate))
        if in_channels != 3:
            self.conv_proj = nn.Conv2d(in_channels, embed_dim, patch_size, patch_size)
            nn.init.trunc_normal_(self.conv_proj.weight, std=(in_channels * patch_size**2) ** -0.5)  # torchvision's
            nn.init.zeros_(self.conv_proj.bias)

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec(self.in_channels, self.img_size)

    def layout(self, inputs: Tensor) -> TokenLayout:
        """Return the grid of the patches, which stand behind the CLS token."""
        H, W = self.img_size
        return TokenLayout(1, H // self.patch_size, W // self.patch_size)

    def resizable(self) -> dict[str, Positions | PatchKernel]:
        (H, W), patch = self.img_size, self.patch_size
        return {
            "encoder.pos_embedding": Positions((H // patch, W // patch)),
            "conv_proj.weight": PatchKernel("d C h w", patch, patch, self.in_channels),
        }

    @property
    def blocks(self) -> nn.Sequential:
        return self.encoder.layers

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.in_channels, self.img_size)
        patches = self.conv_proj(images).flatten(2).mT
        z = torch.cat([self.class_token.expand(images.shape[0], -1, -1), patches], dim=1)
        return self.encoder(z)

    @classmethod
    def translate(
        cls, weights: dict[str, Tensor], num_heads: int | None = None, img_size: int | tuple[int, int] | None = None
    ) -> Translation | None:
        """torchvision's own weights under our names; None if they are not such.

        RGB images are assumed, square ones unless given, and of the widths that torchvision publishes its number of
        heads.

        Raises:
            ForeignError: they are not whole, or not of what is given.
        """
        if "conv_proj.weight" not in weights or "heads.head.weight" not in weights:
            return None
        embed_dim, _, patch, _ = shape_of(weights, "conv_proj.weight", 4)
        _, positions, _ = shape_of(weights, "encoder.pos_embedding", 3)
        num_classes, _ = shape_of(weights, "heads.head.weight", 2)
        depth = count_layers(weights, r"encoder\.layers\.encoder_layer_(\d+)\.")
        size = image_size(positions - 1, (patch, patch), img_size)
        renamed, left_out = rename(weights, KEY_MAP, TORCHVISION)
        assumed = f"{'square ' if img_size is None else ''}RGB images {NORMALISED}"
        published = TORCHVISION_HEADS.get((embed_dim, depth))
        unlike = f"torchvision publishes no ViT of width {embed_dim} and depth {depth}"
        heads, unknown = heads_of(embed_dim, num_heads, published, unlike)
        if heads is None:
            return Translation(TORCHVISION, renamed, None, left_out, assumed, unknown)
        if num_heads is None:
            assumed += f", {heads} heads"
        backbone = {"type": "ViT", "arch": Arch(embed_dim, depth, heads)._asdict()}
        backbone |= {"img_size": size, "patch_size": patch}
        head = {"type": "LinearHead", "num_classes": num_classes, "norm": False}
        model = {"type": "ImageClassifier", "backbone": backbone, "head": head}
        return Translation(TORCHVISION, renamed, model, left_out, assumed)
