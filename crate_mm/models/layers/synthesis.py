"""The layer of a white-box decoder, which inverts a layer of the encoder.

Shapes: B images, N tokens, d embedding dimensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layer import Compression, Layer, TokenLayout


class DecoderBlock(Layer):
    """A layer of CRATE-MAE's decoder, ``(B, N, d) -> (B, N, d)``, for tokens ``Y`` as rows::

        G  = LN(Y) E^T                      the dictionary E, d x d, replaces the sparsification step
        Y' = G - compress(LN(G))            opposite to compression

    Sign and order of the steps are the reverse of an encoder layer's; the weights are separate. The layer has no sparse
    code and no ``tap_code``. ``tap_synthesis`` passes G, ``tap_w`` the compression's projected tokens, ``tap_out`` Y'.

    Source: Pai et al., "Masked Completion via Structured Diffusion with White-Box Transformers", ICLR 2024, arXiv
    2404.02446, and the official code.

    Args:
        embed_dim: d.
        compress: the compression step.
        norm_eps: epsilon of both LayerNorms.
    """

    def __init__(self, embed_dim: int, compress: Compression, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.norm_synthesis = nn.LayerNorm(embed_dim, norm_eps)
        self.dictionary = nn.Parameter(torch.empty(embed_dim, embed_dim))
        nn.init.kaiming_uniform_(self.dictionary)
        self.tap_synthesis = nn.Identity()
        self.norm_compress = nn.LayerNorm(embed_dim, norm_eps)
        self.compress = compress
        self.tap_out = nn.Identity()

    def forward(self, y: Tensor, layout: TokenLayout | None = None) -> Tensor:
        g = self.tap_synthesis(F.linear(self.norm_synthesis(y), self.dictionary))
        g_normed = self.norm_compress(g)
        compressed = self.compress(g_normed, layout) if self.compress.needs_layout else self.compress(g_normed)
        return self.tap_out(g - compressed)
