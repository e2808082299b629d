"""ToST, the token statistics transformer, for images: layers whose cost grows with the number of tokens.

Source: Wu et al., "Token Statistics Transformer: Linear-Time Attention via Variational Rate Reduction", ICLR 2025,
arXiv 2412.17810, and the authors' code, github.com/RobinWu218/ToST, whose vision weights ``ToST.translate`` reads.
Shapes: B images, C channels, H x W pixels, N patches, d embedding dimensions, K heads of dimension p.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...registry import BACKBONES
from ..arch import Arch, Sizes, resolve_arch
from ..backbone import Backbone, InputSpec
from ..layers import ClassAttentionBlock, ConvStem, TokenLayout
from .block import build_block
from .foreign import NORMALISED, ForeignError, Translation, checked_size, count_layers, rename, shape_of

TOST_ARCHS: dict[str, Arch] = {
    "tiny_12": Arch(embed_dim=192, depth=12, num_heads=4),
    "small_12": Arch(embed_dim=384, depth=12, num_heads=8),
    "tiny_24": Arch(embed_dim=192, depth=24, num_heads=4),
    "small_24": Arch(embed_dim=384, depth=24, num_heads=8),
    "medium_24": Arch(embed_dim=512, depth=24, num_heads=8),
    "large_24": Arch(embed_dim=768, depth=24, num_heads=16),
}

OFFICIAL = "the ToST code for vision"
PUBLISHED = {"class_layers": 2, "qkv_bias": True, "mlp_ratio": 4, "tokens_norm": True}
KEY_MAP = (
    (r"patch_embed\.proj\.(\d+)\.([01])\.(\w+)", r"backbone.embedding.stem.\1.\2.\3"),
    (r"pos_embeder\.token_projection\.(weight|bias)", r"backbone.embedding.positions.proj.\1"),
    (r"cls_token", r"backbone.cls_token"),
    (r"blocks\.(\d+)\.norm1\.(weight|bias)", r"backbone.blocks.\1.norm_compress.\2"),
    (r"blocks\.(\d+)\.norm2\.(weight|bias)", r"backbone.blocks.\1.norm_sparsify.\2"),
    (r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"backbone.blocks.\1.compress.proj.\2"),
    (r"blocks\.(\d+)\.attn\.temp", r"backbone.blocks.\1.compress.temp"),
    (r"blocks\.(\d+)\.attn\.to_out\.0\.(weight|bias)", r"backbone.blocks.\1.compress.out.\2"),
    (r"blocks\.(\d+)\.mlp\.(fc[12])\.(weight|bias)", r"backbone.blocks.\1.sparsify.\2.\3"),
    (r"blocks\.(\d+)\.gamma1", r"backbone.blocks.\1.gamma_compress"),
    (r"blocks\.(\d+)\.gamma2", r"backbone.blocks.\1.gamma_sparsify"),
    (r"cls_attn_blocks\.(\d+)\.norm1\.(weight|bias)", r"backbone.class_blocks.\1.norm_attention.\2"),
    (r"cls_attn_blocks\.(\d+)\.norm2\.(weight|bias)", r"backbone.class_blocks.\1.norm_mlp.\2"),
    (r"cls_attn_blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"backbone.class_blocks.\1.attention.qkv.\2"),
    (r"cls_attn_blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"backbone.class_blocks.\1.attention.out.\2"),
    (r"cls_attn_blocks\.(\d+)\.mlp\.(fc[12])\.(weight|bias)", r"backbone.class_blocks.\1.mlp.\2.\3"),
    (r"cls_attn_blocks\.(\d+)\.gamma1", r"backbone.class_blocks.\1.gamma_attention"),
    (r"cls_attn_blocks\.(\d+)\.gamma2", r"backbone.class_blocks.\1.gamma_mlp"),
    (r"norm\.(weight|bias)", r"head.norm.\1"),
    (r"head\.(weight|bias)", r"head.fc.\1"),
)


@BACKBONES.register_module()
class ToST(Backbone):
    """ToST backbone: images ``(B, C, H, W)`` to tokens ``(B, 1 + N, d)``, CLS token first.

    Patches alone pass the layers, ``blocks``; then the CLS token is put before them and gathers from them in two layers
    of class attention. The final LayerNorm, with epsilon 1e-6, is the head's. The official code returns its logits
    twice in training; this model once.

    The stem has BatchNorm: a training step changes its running statistics, which are part of the weights, and depends
    on how the batch is split.

    Args:
        arch: a name of ``TOST_ARCHS`` or a dict with ``embed_dim``, ``depth``, ``num_heads``.
        img_size: image height and width in pixels, one number if square. Images of other sizes are taken too, if they
            are a whole number of patches.
        patch_size: 16 or 8.
        in_channels: image channels C.
        layer_scale: what the factors of the added steps start at; 1 for up to 12 layers, 1e-5 for more, if not given.
        drop_path: stochastic depth of each layer, the same for all; none in class attention.
        class_layers: how many layers of class attention there are.
        qkv_bias: whether TSSA's ``U`` and the class attention's queries, keys and values have a bias.
        mlp_ratio: the hidden width of all MLPs, in multiples of d.
        tokens_norm: whether the second LayerNorm in class attention is over all tokens or over the CLS token alone.

    Raises:
        ValueError: unknown ``arch``, or sizes that do not divide.
    """

    sizes = Sizes("tost", TOST_ARCHS)
    head_settings: ClassVar[dict] = {"norm_eps": 1e-6, "init_std": 0.02}
    stem = ("embedding",)  # the CLS token comes in behind the layers

    def __init__(
        self,
        arch: str | dict = "small_12",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        class_layers: int = 2,
        qkv_bias: bool = True,
        mlp_ratio: float = 4,
        tokens_norm: bool = True,
    ) -> None:
        super().__init__()
        embed_dim, depth, num_heads = resolve_arch(arch, TOST_ARCHS)
        if layer_scale is None:
            layer_scale = 1.0 if depth <= 12 else 1e-5
        self.embed_dim = embed_dim
        self.embedding = ConvStem(img_size, patch_size, in_channels, embed_dim)
        options = {"residual": True, "norm_eps": 1e-6, "drop_path": drop_path, "layer_scale": layer_scale}
        steps = {"type": "TSSA", "proj_bias": qkv_bias}, {"type": "MLP", "ratio": mlp_ratio}
        self.blocks = nn.ModuleList(build_block(embed_dim, num_heads, *steps, **options) for _ in range(depth))
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, embed_dim))
        self.class_blocks = nn.ModuleList(
            ClassAttentionBlock(
                embed_dim, num_heads, layer_scale, qkv_bias=qkv_bias, mlp_ratio=mlp_ratio, tokens_norm=tokens_norm
            )
            for _ in range(class_layers)
        )
        for module in (*self.blocks.modules(), *self.class_blocks.modules()):
            if isinstance(module, nn.Linear):
                # The official code cuts this at 100 standard deviations.
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def img_size(self) -> tuple[int, int]:
        return self.embedding.img_size

    @property
    def in_channels(self) -> int:
        return self.embedding.in_channels

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec(self.in_channels, self.img_size, any_size=True)

    def layout(self, inputs: Tensor) -> TokenLayout:
        """Return the grid of the patches. They are all tokens in ``blocks``: the CLS token joins them afterwards."""
        (h, w), (H, W) = self.embedding.patch_size, inputs.shape[-2:]
        return TokenLayout(0, H // h, W // w)

    def forward(self, images: Tensor) -> Tensor:
        z, layout = self.embedding(images), self.layout(images)
        for block in self.blocks:
            z = block(z, layout)
        z = torch.cat([self.cls_token.expand(z.shape[0], -1, -1), z], dim=1)
        for block in self.class_blocks:
            z = block(z)
        return z

    @classmethod
    def translate(
        cls,
        weights: dict[str, Tensor],
        num_heads: int | None = None,
        img_size: int | tuple[int, int] | None = None,
        tokens_norm: bool | None = None,
    ) -> Translation | None:
        """The official vision code's weights under our names, with the model that they are of; None if not such.

        Names and shapes tell all but the size of the images and ``tokens_norm``, on which no weight depends; 224 and
        True are taken as published.

        Args:
            weights: by name, unwrapped, BatchNorm's statistics among them.
            num_heads: K, which ``temp`` tells: another number is refused.
            img_size: of the images.
            tokens_norm: the argument of that name.

        Raises:
            ForeignError: the weights are not whole, or not of what is given.
        """
        if not {"blocks.0.attn.temp", "patch_embed.proj.0.0.weight", "pos_embeder.token_projection.weight"} <= (
            weights.keys()
        ):
            return None
        heads, _ = shape_of(weights, "blocks.0.attn.temp", 2)
        _, channels, *_ = shape_of(weights, "patch_embed.proj.0.0.weight", 4)
        *_, embed_dim = shape_of(weights, "cls_token", 3)
        num_classes, _ = shape_of(weights, "head.weight", 2)
        patch = 2 ** count_layers(weights, r"patch_embed\.proj\.(\d+)\.0\.")
        if channels != 3 or patch not in (8, 16):
            raise ForeignError(f"{channels} channels in patches of {patch} pixels are not ToST's, RGB and 8 or 16")
        if num_heads not in (None, heads):
            raise ForeignError(f"it has {heads} heads, not the {num_heads} that are given as num_heads")
        if tokens_norm is not None and not isinstance(tokens_norm, bool):
            raise ForeignError(f"tokens_norm is True or False, not {tokens_norm!r}")
        renamed, left_out = rename(weights, KEY_MAP, OFFICIAL)
        arch = Arch(embed_dim, count_layers(weights, r"blocks\.(\d+)\."), heads)
        backbone = {"type": "ToST", "arch": cls.sizes.name_of(arch), "img_size": 224, "patch_size": patch}
        if img_size is not None:
            H, W = checked_size(img_size)
            backbone["img_size"] = H if H == W else (H, W)
        hidden, _ = shape_of(weights, "blocks.0.mlp.fc1.weight", 2)
        options = {
            "class_layers": count_layers(weights, r"cls_attn_blocks\.(\d+)\."),
            "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
            "mlp_ratio": mlp_ratio_of(hidden, embed_dim),
            "tokens_norm": tokens_norm is not False,
        }
        backbone |= {key: value for key, value in options.items() if value != PUBLISHED[key]}
        head = {"type": "LinearHead", "num_classes": num_classes, "norm_eps": 1e-6}
        model = {"type": "ImageClassifier", "backbone": backbone, "head": head}
        assumed = f"RGB images {NORMALISED}, CLS pooling"
        assumed += ", made for 224 x 224 pixels" if img_size is None else ""
        assumed += ", tokens_norm = True" if tokens_norm is None else ""
        return Translation(OFFICIAL, renamed, model, left_out, assumed)


def mlp_ratio_of(hidden: int, width: int) -> float:
    """The ratio of an MLP's widths, whose product with the width, rounded down, is the hidden width."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
