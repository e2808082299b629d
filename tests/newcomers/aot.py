"""AoT, the attention-only transformer (Wang et al., ICML 2025, arXiv 2506.03790): layers Z + MSSA(LN(Z)), no more."""

from typing import ClassVar

import torch
from torch import nn

from crate_mm.models import Backbone, InputSpec, TokenLayout
from crate_mm.models.arch import Arch, Sizes, resolve_arch
from crate_mm.models.families.block import build_block
from crate_mm.models.layers import Compression, Map, Subspaces
from crate_mm.registry import BACKBONES, LAYERS


@LAYERS.register_module()
class MaskedMSSA(Compression):
    """MSSA in which a token attends to itself and to those before it, as in language models."""

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, embed_dim, bias=False)
        self.to_out = nn.Linear(embed_dim, embed_dim)

    def attention(self, w):
        w = w.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, N, K p) to (B, K, N, p)
        later = torch.ones(w.shape[2], w.shape[2], dtype=torch.bool, device=w.device).triu(1)
        return w, (w @ w.mT / w.shape[-1] ** 0.5).masked_fill(later, -torch.inf).softmax(-1)

    def maps(self, w, layout):
        return {"attention": Map(self.attention(w)[1])}

    def subspaces(self):
        return Subspaces(self.qkv.weight.T, self.num_heads)

    def forward(self, x):
        w, attention = self.attention(self.tap_w(self.qkv(x)))
        return self.to_out((attention @ w).transpose(1, 2).flatten(2))


@BACKBONES.register_module()
class AoT(Backbone):
    """Images (B, C, H, W) to tokens (B, N, embed_dim), without a CLS token.

    `resizable` is left out: `Positions` are those of a CLS token and N patches.
    """

    # "base" and "medium" have the parameters of the paper's language models of these names; "tiny" is for trials
    sizes = Sizes("aot", {"tiny": Arch(192, 12, 3), "base": Arch(1024, 24, 16), "medium": Arch(1280, 36, 20)})
    head_settings: ClassVar[dict] = {"pool": "mean"}
    stem = ("patches", "positions")

    def __init__(self, arch="base", img_size=224, patch_size=16, in_channels=3, compress=None):
        super().__init__()
        self.embed_dim, depth, num_heads = resolve_arch(arch, self.sizes.archs)
        self.patch_size, self.side = patch_size, img_size // patch_size
        self.spec = InputSpec(channels=in_channels, size=(img_size, img_size))
        self.patches = nn.Conv2d(in_channels, self.embed_dim, patch_size, patch_size)
        self.positions = nn.Parameter(0.02 * torch.randn(1, self.side**2, self.embed_dim))
        self.blocks = nn.ModuleList(
            build_block(self.embed_dim, num_heads, compress=compress or dict(type="MSSA"), sparsify=None)
            for _ in range(depth)
        )

    @property
    def input_spec(self):
        return self.spec

    def layout(self, inputs):
        rows, columns = (side // self.patch_size for side in inputs.shape[2:])
        return TokenLayout(prefix=0, rows=rows, columns=columns)

    def forward(self, images):
        z = self.patches(images).flatten(2).mT + self.positions
        for block in self.blocks:
            z = block(z, self.layout(images))
        return z
