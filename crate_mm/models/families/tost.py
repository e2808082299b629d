"""ToST, the token statistics transformer, for images: its cost is linear in the number of tokens.

Source: Wu et al., "Token Statistics Transformer: Linear-Time Attention via Variational Rate Reduction", ICLR 2025,
arXiv 2412.17810, and the authors' code, github.com/RobinWu218/ToST. ``OFFICIAL`` declares its vision weights.
Shapes: B images, C channels, H x W pixels, N patches, d embedding dimensions, K heads of dimension p.
"""

import math
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...registry import BACKBONES
from ..arch import Arch, Sizes, resolve_arch
from ..layers import ClassAttentionBlock, ConvStem
from ..official import NORMALIZED, Argument, Official, classifier
from .block import build_blocks
from .patches import PatchBackbone

TOST_ARCHS: dict[str, Arch] = {
    "tiny_12": Arch(embed_dim=192, depth=12, num_heads=4),
    "small_12": Arch(embed_dim=384, depth=12, num_heads=8),
    "tiny_24": Arch(embed_dim=192, depth=24, num_heads=4),
    "small_24": Arch(embed_dim=384, depth=24, num_heads=8),
    "medium_24": Arch(embed_dim=512, depth=24, num_heads=8),
    "large_24": Arch(embed_dim=768, depth=24, num_heads=16),
}

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


def mlp_ratio_of(hidden: int, width: int) -> float:
    """Return the MLP ratio for which ``int(width * ratio)`` is the hidden width."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def official_model(s: SimpleNamespace) -> dict:
    """Return the config of the classifier with these sizes (see ``Official``)."""
    arch = Sizes("tost", TOST_ARCHS).name_of(Arch(s.embed_dim, s.depth, s.num_heads))
    backbone = {"type": "ToST", "arch": arch, "img_size": s.img_size, "patch_size": 2**s.stages}
    ratio = mlp_ratio_of(s.hidden, s.embed_dim)
    options = {"class_layers": s.class_layers, "qkv_bias": s.qkv_bias, "mlp_ratio": ratio, "tokens_norm": s.tokens_norm}
    backbone |= {name: value for name, value in options.items() if value != PUBLISHED[name]}
    return classifier(backbone, s.num_classes, norm_eps=1e-6)


OFFICIAL = Official(
    source="the ToST code for vision",
    signs=("blocks.0.attn.temp", "patch_embed.proj.0.0.weight", "pos_embeder.token_projection.weight"),
    key_map=KEY_MAP,
    shapes={
        "blocks.0.attn.temp": "num_heads _",
        "patch_embed.proj.0.0.weight": "_ channels _ _",
        "cls_token": "_ _ embed_dim",
        "head.weight": "num_classes _",
        "blocks.0.mlp.fc1.weight": "hidden _",
    },
    counts={
        "stages": r"patch_embed\.proj\.(\d+)\.0\.",
        "depth": r"blocks\.(\d+)\.",
        "class_layers": r"cls_attn_blocks\.(\d+)\.",
    },
    flags={"qkv_bias": "blocks.0.attn.qkv.bias"},
    arguments={
        "num_heads": Argument(words="{} heads"),
        "img_size": Argument(224, "made for {0} x {0} pixels"),
        "tokens_norm": Argument(True, "tokens_norm = {}"),
    },
    assumes=f"RGB images {NORMALIZED}, CLS pooling",
    model=official_model,
)


@BACKBONES.register_module()
class ToST(PatchBackbone):
    """ToST backbone: images ``(B, C, H, W)`` to tokens ``(B, 1 + N, d)``, CLS token first.

    Only patches pass the layers ``blocks``. Then the CLS token is prepended and attends to the patches in class
    attention layers. The final LayerNorm, with epsilon 1e-6, is in the head. In training, the official code returns its
    logits twice; this model returns them once.

    The stem has BatchNorm. Its running statistics are part of the weights. A training step changes them, and depends
    on how the batch is split.

    Args:
        arch: a name of ``TOST_ARCHS`` or a dict with ``embed_dim``, ``depth``, ``num_heads``.
        img_size: image height and width in pixels, one number if square. Other sizes that the patch size divides work
            too.
        patch_size: 16 or 8.
        in_channels: image channels C.
        layer_scale: initial factors of the residual branches (default: 1 for up to 12 layers, else 1e-5).
        drop_path: drop probability of stochastic depth, the same in all layers; 0 in class attention.
        class_layers: number of class attention layers.
        qkv_bias: whether TSSA's ``U`` and the class attention's queries, keys and values have a bias.
        mlp_ratio: hidden width of all MLPs, in multiples of d.
        tokens_norm: in class attention, apply the second LayerNorm to all tokens, not only to the CLS token.

    Raises:
        ValueError: unknown ``arch`` or indivisible sizes.
    """

    sizes = Sizes("tost", TOST_ARCHS)
    official: ClassVar[Official] = OFFICIAL
    head_settings: ClassVar[dict] = {"norm_eps": 1e-6, "init_std": 0.02}
    prefix = 0  # the CLS token joins after the layers
    positions = None  # computed for a grid of any size
    kernels: ClassVar[dict] = {}
    any_size = True

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
        size = embed_dim, depth, num_heads = resolve_arch(arch, TOST_ARCHS)
        if layer_scale is None:
            layer_scale = 1.0 if depth <= 12 else 1e-5
        self.embed_dim = embed_dim
        self.embedding = ConvStem(img_size, patch_size, in_channels, embed_dim)
        options = {"residual": True, "norm_eps": 1e-6, "layer_scale": layer_scale}
        steps = {"type": "TSSA", "proj_bias": qkv_bias}, {"type": "MLP", "ratio": mlp_ratio}
        self.blocks = build_blocks(size, *steps, steps, drop_path, "constant", **options)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, embed_dim))
        self.class_blocks = nn.ModuleList(
            ClassAttentionBlock(
                embed_dim, num_heads, layer_scale, qkv_bias=qkv_bias, mlp_ratio=mlp_ratio, tokens_norm=tokens_norm
            )
            for _ in range(class_layers)
        )
        for module in (*self.blocks.modules(), *self.class_blocks.modules()):
            if isinstance(module, nn.Linear):
                # The official code truncates at 100 standard deviations.
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        z = super().forward(images)
        z = torch.cat([self.cls_token.expand(z.shape[0], -1, -1), z], dim=1)
        for block in self.class_blocks:
            z = block(z)
        return z
