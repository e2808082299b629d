"""AoT: a transformer of attention alone, without a sparsification (Wang et al., ICML 2025, arXiv 2506.03790)."""

from torch import nn

from crate_mm.models import Backbone, InputSpec, Positions, TokenLayout
from crate_mm.models.families.block import build_block
from crate_mm.models.layers import TokenEmbedding
from crate_mm.registry import BACKBONES


@BACKBONES.register_module()
class NewcomerAoT(Backbone):
    """Map images (B, C, H, W) to tokens (B, 1 + N, embed_dim), CLS token first: Z' = Z + MSSA(LN(Z)) in each layer."""

    stem = ("embedding",)

    def __init__(self, embed_dim=192, depth=12, num_heads=3, img_size=224, patch_size=16, in_channels=3):
        super().__init__()
        self.embed_dim = embed_dim
        self.embedding = TokenEmbedding(img_size, patch_size, in_channels, embed_dim)
        parts = dict(compress=dict(type="MSSA"), sparsify=None)
        self.blocks = nn.ModuleList(build_block(embed_dim, num_heads, **parts) for _ in range(depth))

    @property
    def input_spec(self):
        return InputSpec(channels=self.embedding.in_channels, size=self.embedding.img_size)

    def layout(self, inputs):
        rows, columns = (side // patch for side, patch in zip(inputs.shape[2:], self.embedding.patch_size, strict=True))
        return TokenLayout(prefix=1, rows=rows, columns=columns)

    def resizable(self):
        return {"embedding.pos_embed": Positions(self.embedding.grid_size)}

    def forward(self, images):
        z, layout = self.embedding(images), self.layout(images)
        for block in self.blocks:
            z = block(z, layout)
        return z
