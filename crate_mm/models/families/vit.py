"""torchvision's ViT as a backbone, the baseline of the CRATE paper.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv 2010.11929, implemented by torchvision.
Register tokens are those of Darcet et al., "Vision Transformers Need Registers", ICLR 2024, arXiv 2309.16588.
``DINO`` declares the weights of DINO, DINOv2, SimDINO and SimDINOv2. Their ViT differs only in parameter names.
Shapes: B images, C channels, H x W pixels, N patches, d embedding dimensions, K heads, R registers.
"""

import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import EncoderBlock

from ...registry import BACKBONES
from ..arch import Arch, Sizes, resolve_arch
from ..backbone import Backbone, InputSpec, PatchKernel, Positions
from ..layers import (
    Compression,
    DropPath,
    Layer,
    Map,
    TokenLayout,
    check_images,
    drop_path_rates,
    head_width,
    mask_patches,
    patch_grid,
    resize_table,
    scaled_similarity,
)
from ..official import NORMALIZED, Argument, Official, classifier
from .segmenter import OURS, SEGMENTERS, TIMM_VIT, VIT_HEADS

VIT_ARCHS: dict[str, Arch] = {
    "tiny": Arch(embed_dim=192, depth=12, num_heads=3),
    "small": Arch(embed_dim=384, depth=12, num_heads=6),
}

KEY_MAP = (
    (r"heads\.head\.(weight|bias)", r"head.fc.\1"),
    (r"(class_token|conv_proj\..*|encoder\..*)", r"backbone.\1"),
)


def official_model(s: SimpleNamespace) -> dict:
    """Return the config of the classifier with these sizes (see ``Official``)."""
    arch = Arch(s.embed_dim, s.depth, s.num_heads)._asdict()
    backbone = {"type": "ViT", "arch": arch, "img_size": s.img_size, "patch_size": s.patch_size}
    return classifier(backbone, s.num_classes, norm=False)


TORCHVISION = Official(
    source="torchvision's VisionTransformer",
    signs=("conv_proj.weight", "heads.head.weight"),
    key_map=KEY_MAP,
    shapes={
        "conv_proj.weight": "embed_dim channels patch_h patch_w",
        "encoder.pos_embedding": "_ tokens _",
        "heads.head.weight": "num_classes _",
    },
    counts={"depth": r"encoder\.layers\.encoder_layer_(\d+)\."},
    arguments={"num_heads": Argument(words="{} heads"), "img_size": Argument()},
    assumes=f"RGB images {NORMALIZED}",
    model=official_model,
    published_by=("embed_dim", "depth"),
    published={  # ViT-B, L and H
        (768, 12): {"num_heads": 12},
        (1024, 24): {"num_heads": 16},
        (1280, 32): {"num_heads": 16},
    },
    unlike="torchvision publishes no ViT of width {embed_dim} and depth {depth}",
)


DINO_KEY_MAP = (
    *TIMM_VIT,
    (r"register_tokens", r"backbone.registers"),
    (r"blocks\.(\d+)\.ls1\.gamma", rf"{OURS}gamma_compress"),
    (r"blocks\.(\d+)\.ls2\.gamma", rf"{OURS}gamma_sparsify"),
)


def unchunked(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str], dict[str, Any]]:
    """Remove 'backbone.' and the chunk of 'blocks.<chunk>.<layer>' from names; layers are numbered across chunks."""
    weights = {
        re.sub(r"^blocks\.\d+\.(?=\d+\.)", "blocks.", name.removeprefix("backbone.")): value
        for name, value in weights.items()
    }
    registers = weights["register_tokens"].shape[1] if "register_tokens" in weights else 0
    return weights, [], {"registers": registers, "layer_scale": "blocks.0.ls1.gamma" in weights}


def dino_model(s: SimpleNamespace) -> dict:
    """Return the config of a feature extractor with these sizes (see ``Official``)."""
    arch = Arch(s.embed_dim, s.depth, s.num_heads)._asdict()
    backbone = {"type": "ViT", "arch": arch, "img_size": s.img_size, "patch_size": s.patch_size}
    backbone |= {"registers": s.registers} if s.registers else {}
    backbone |= {"layer_scale": 0.1} if s.layer_scale else {}
    return classifier(backbone, 0, norm=False)


DINO = Official(
    source="the code of DINO or DINOv2",
    signs=("backbone.cls_token", "backbone.patch_embed.proj.weight"),
    key_map=DINO_KEY_MAP,
    shapes={"patch_embed.proj.weight": "embed_dim channels patch_h patch_w", "pos_embed": "_ tokens embed_dim"},
    counts={"depth": r"blocks\.(\d+)\."},
    arguments={"num_heads": Argument(words="{} heads"), "img_size": Argument()},
    assumes=f"RGB images {NORMALIZED}, and the features of the CLS token",
    model=dino_model,
    published_by=("embed_dim", "depth"),
    published=VIT_HEADS,
    unlike="no ViT of width {embed_dim} and depth {depth} is published",
    unused=r"(head|dino_head|ibot_head)\..*|mask_token",
    unpack=unchunked,
)
# DINOv2's backbones without a container. A bare backbone of DINO has timm's names, so TimmBackbone loads it.
BARE = tuple(
    replace(DINO, signs=("mask_token", "patch_embed.proj.weight", f"{block}.ls1.gamma"))
    for block in ("blocks.0", "blocks.0.0")
)


class TappedGELU(nn.GELU):
    """GELU whose output passes ``tap_act``."""

    def __init__(self) -> None:
        super().__init__()
        self.tap_act = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.tap_act(super().forward(x))


class TappedAttention(nn.MultiheadAttention, Compression):
    """PyTorch's self-attention whose input passes ``tap_w``. R^c is not defined, because there are no subspaces."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **kwargs) -> tuple[Tensor, Tensor | None]:
        tapped = self.tap_w(query)
        return super().forward(tapped, tapped, tapped, **kwargs)

    def maps(self, w: Tensor, layout: TokenLayout | None = None) -> dict[str, Map]:
        q, k, _ = F.linear(w, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        return {"attention": Map(scaled_similarity(q, k, self.num_heads))}

    def keys(self, w: Tensor) -> Tensor:
        return F.linear(w, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)[1]


class TappedEncoderBlock(EncoderBlock, Layer):
    """torchvision's layer with taps: ``tap_w``, ``tap_act`` (the MLP's activations, ``(B, 1 + N, 4 d)``), ``tap_out``.

    It adopts the parameters of ``source`` under the same names. With ``layer_scale``, a residual branch has a learned
    factor per channel, ``gamma_compress`` or ``gamma_sparsify``, as in ``Block``.
    """

    def __init__(
        self,
        source: EncoderBlock,
        num_heads: int,
        embed_dim: int,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        layer_scale: float | None = None,
    ) -> None:
        with torch.device("meta"):
            super().__init__(num_heads, embed_dim, 4 * embed_dim, 0.0, 0.0, partial(nn.LayerNorm, eps=norm_eps))
            self.self_attention = TappedAttention(embed_dim, num_heads, batch_first=True)
        self.load_state_dict(source.state_dict(), assign=True)
        self.mlp[1] = TappedGELU()
        if drop_path:  # replace the two dropouts (p = 0) at the ends of the residual branches
            self.dropout, self.mlp[-1] = DropPath(drop_path), DropPath(drop_path)
        self.gamma_compress = self.gamma_sparsify = None
        if layer_scale is not None:
            self.gamma_compress, self.gamma_sparsify = (
                nn.Parameter(torch.full((embed_dim,), float(layer_scale))) for _ in range(2)
            )
        self.tap_out = nn.Identity()
        # Registering the module again would give its parameters a second name.
        self.__dict__["compress"] = self.self_attention

    def taps(self) -> dict[str, nn.Module]:
        return {**super().taps(), "tap_act": self.mlp[1].tap_act}

    def forward(self, z: Tensor, layout: TokenLayout | None = None) -> Tensor:
        if self.gamma_compress is None:
            return self.tap_out(super().forward(z))
        x = self.ln_1(z)
        z = z + self.dropout(self.gamma_compress * self.self_attention(x, x, x, need_weights=False)[0])
        *mlp, drop_path = self.mlp
        x = self.ln_2(z)
        for module in mlp:
            x = module(x)
        return self.tap_out(z + drop_path(self.gamma_sparsify * x))


@BACKBONES.register_module()
class ViT(VisionTransformer, Backbone):
    """torchvision's VisionTransformer without its classifier: ``(B, C, H, W) -> (B, 1 + N, d)``, CLS token first.

    The MLPs are 4 d wide. The tokens have passed the final LayerNorm, so a head needs no LayerNorm
    (``LinearHead(norm=False)``). Parameters have torchvision's names. Registers follow the CLS token in the layers and
    are not returned.

    Args:
        arch: a name of ``VIT_ARCHS`` or a dict with ``embed_dim``, ``depth``, ``num_heads``.
        img_size: image height and width in pixels, one number if square (torchvision: square only).
        patch_size: height and width of the square patches in pixels.
        in_channels: image channels C.
        drop_path, drop_path_rule: stochastic depth, as in ``CRATE``.
        norm_eps: epsilon of the LayerNorms; 1e-6 is torchvision's.
        registers: number R of learned tokens without a position.
        layer_scale: initial value of a learned factor per channel of each residual branch; None for no factors.

    Raises:
        ValueError: unknown ``arch``, indivisible sizes, invalid ``drop_path`` or ``registers``, or (in forward) images
            of another size.
    """

    sizes = Sizes("vit", VIT_ARCHS)
    official: ClassVar[Official] = replace(TORCHVISION, variants=(DINO, *BARE, *SEGMENTERS))
    head_settings: ClassVar[dict] = {"norm": False}  # the tokens have passed a LayerNorm
    stem = ("class_token", "conv_proj", "encoder.pos_embedding")
    any_size = False  # see interpolate_positions

    def __init__(
        self,
        arch: str | dict = "small",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        drop_path: float = 0.0,
        drop_path_rule: str = "linear",
        norm_eps: float = 1e-6,
        registers: int = 0,
        layer_scale: float | None = None,
    ) -> None:
        embed_dim, depth, num_heads = resolve_arch(arch, VIT_ARCHS)
        H, W = (img_size, img_size) if isinstance(img_size, int) else img_size
        if not isinstance(patch_size, int):
            raise ValueError(f"torchvision's ViT takes square patches, got patch_size {patch_size}")
        if min(H, W, patch_size) < 1 or H % patch_size or W % patch_size:
            raise ValueError(f"img_size {img_size} is not a whole number of patches of {patch_size} (patch_size)")
        head_width(embed_dim, num_heads)  # raises
        if not isinstance(registers, int) or registers < 0:
            raise ValueError(f"registers must be a number of tokens, got {registers!r}")
        norm = partial(nn.LayerNorm, eps=norm_eps)
        super().__init__(H, patch_size, depth, num_heads, embed_dim, mlp_dim=4 * embed_dim, norm_layer=norm)
        self.embed_dim = embed_dim
        self.img_size = (H, W)
        if H != W:
            positions = 1 + (H // patch_size) * (W // patch_size)
            self.encoder.pos_embedding = nn.Parameter(torch.empty(1, positions, embed_dim).normal_(std=0.02))
        self.in_channels = in_channels
        del self.heads
        rates = drop_path_rates(drop_path, depth, drop_path_rule)
        for rate, (name, layer) in zip(rates, list(self.encoder.layers.named_children())):
            block = TappedEncoderBlock(layer, num_heads, embed_dim, rate, norm_eps, layer_scale)
            setattr(self.encoder.layers, name, block)
        self.stem += ("registers",) if registers else ()
        self.registers = nn.Parameter(1e-6 * torch.randn(1, registers, embed_dim)) if registers else None
        if in_channels != 3:
            self.conv_proj = nn.Conv2d(in_channels, embed_dim, patch_size, patch_size)
            nn.init.trunc_normal_(self.conv_proj.weight, std=(in_channels * patch_size**2) ** -0.5)  # torchvision's
            nn.init.zeros_(self.conv_proj.bias)

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec(self.in_channels, self.img_size, self.any_size)

    def layout(self, inputs: Tensor) -> TokenLayout:
        """Return the grid of the patches, which follow the CLS token and the registers."""
        H, W = inputs.shape[-2:] if self.any_size else self.img_size
        return TokenLayout(1 + self.num_registers, H // self.patch_size, W // self.patch_size)

    def resizable(self) -> dict[str, Positions | PatchKernel]:
        (H, W), patch = self.img_size, self.patch_size
        return {
            "encoder.pos_embedding": Positions((H // patch, W // patch)),
            "conv_proj.weight": PatchKernel("d C h w", patch, patch, self.in_channels),
        }

    def interpolate_positions(self) -> bool:
        self.any_size = True
        return True

    @property
    def num_registers(self) -> int:
        return 0 if self.registers is None else self.registers.shape[1]

    @property
    def blocks(self) -> nn.Sequential:
        return self.encoder.layers

    def forward(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """Return the tokens of images; ``mask`` ``(B, N)`` and ``mask_token`` are as for ``mask_patches``."""
        size, patch = tuple(images.shape[-2:]) if self.any_size else self.img_size, self.patch_size
        check_images(images, self.in_channels, size)
        old, new = (patch_grid(pixels, (patch, patch)) for pixels in (self.img_size, size))
        patches = mask_patches(self.conv_proj(images).flatten(2).mT, mask, mask_token)
        z = torch.cat([self.class_token.expand(images.shape[0], -1, -1), patches], dim=1)
        z = z + resize_table(self.encoder.pos_embedding, old, new)
        if self.registers is not None:
            z = torch.cat([z[:, :1], self.registers.expand(images.shape[0], -1, -1), z[:, 1:]], dim=1)
        z = self.encoder.ln(self.encoder.layers(self.encoder.dropout(z)))
        return z if self.registers is None else torch.cat([z[:, :1], z[:, 1 + self.num_registers :]], dim=1)
