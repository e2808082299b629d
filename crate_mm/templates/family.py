"""A family: a backbone from images to tokens. CONTRIBUTING.md lists what a backbone can declare."""

from torch import nn

from crate_mm.models import Backbone, InputSpec, TokenLayout
from crate_mm.models.families.block import build_block
from crate_mm.registry import BACKBONES


@BACKBONES.register_module()
class MyFamily(Backbone):
    """Map images (B, C, H, W) to tokens (B, N, embed_dim)."""

    def __init__(self, width=64, depth=2, num_heads=4, img_size=224, patch_size=16, in_channels=3):
        super().__init__()
        self.embed_dim = width
        self.in_channels, self.img_size, self.patch_size = in_channels, img_size, patch_size
        self.patches = nn.Conv2d(in_channels, width, patch_size, patch_size)
        parts = dict(compress=dict(type="MSSA"), sparsify=dict(type="ISTA"))  # or operators of your own
        self.blocks = nn.ModuleList(build_block(width, num_heads, **parts) for _ in range(depth))

    @property
    def input_spec(self):
        return InputSpec(channels=self.in_channels, size=(self.img_size, self.img_size))

    def layout(self, inputs):  # which tokens are patches, for figures of attention
        rows, columns = (side // self.patch_size for side in inputs.shape[2:])
        return TokenLayout(prefix=0, rows=rows, columns=columns)

    def forward(self, images):
        z = self.patches(images).flatten(2).mT
        for block in self.blocks:
            z = block(z, self.layout(images))
        return z
