"""Multi-head subspace cross-attention and its layer, in which class tokens attend to patches.

Shapes: B images, N patches, C class tokens, d embedding dimensions, K heads (subspaces) of dimension p.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .layer import Layer, Map, TokenLayout
from .mssa import MSSA


class MSCA(MSSA):
    """Multi-head subspace cross-attention: ``(B, N + C, d) -> (B, C, d)``, for patches x and then class tokens e.

    One projection ``U`` gives queries, keys and values, so each head compares a class token with the patches within its
    subspace::

        SCA_k(e; x) = softmax((e U_k) (x U_k)^T / sqrt(p)) x U_k
        MSCA(e; x)  = concat_k(SCA_k(e; x)) W_o + b_o

    ``tap_w`` passes the projected tokens ``(B, N + C, K p)``. The map 'attention' is from classes to patches. The
    arguments are those of ``MSSA``. Source: Wen and Li, "Rethinking Decoders for Transformer-based Semantic
    Segmentation: A Compression Perspective", NeurIPS 2024, arXiv 2411.03033, with code in github.com/QishuaiWen/DEPICT.
    """

    needs_layout = True

    def forward(self, x: Tensor, layout: TokenLayout) -> Tensor:
        patches, classes = self._split(self.tap_w(self.proj(x)), layout)
        out = F.scaled_dot_product_attention(classes, patches, patches)  # scale is 1 / sqrt(p)
        return self.project_back(rearrange(out, "B K C p -> B C (K p)"))

    def maps(self, w: Tensor, layout: TokenLayout | None = None) -> dict[str, Map]:
        if layout is None:
            return {}
        patches, classes = self._split(w, layout)
        scores = classes @ patches.mT / self.head_dim**0.5
        return {"attention": Map(scores.softmax(-1), rows="classes", columns="patches")}

    def _split(self, w: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """Return the patches ``(B, K, N, p)`` and the class tokens ``(B, K, C, p)``."""
        heads = rearrange(w, "B N (K p) -> B K N p", K=self.num_heads)
        return heads.tensor_split([layout.rows * layout.columns], dim=2)


class CrossBlock(Layer):
    """A layer that moves class tokens e towards patches x, ``(B, N + C, d) -> (B, N + C, d)``; patches do not change::

        e' = e + MSCA(e; LN(x))

    As in the official code, e is not normalized. ``tap_in``, ``tap_half`` and ``tap_out`` are those of ``Block``.

    Args:
        embed_dim: d.
        compress: the cross-attention.
    """

    def __init__(self, embed_dim: int, compress: MSCA) -> None:
        super().__init__()
        self.tap_in = nn.Identity()
        self.norm_compress = nn.LayerNorm(embed_dim)
        self.compress = compress
        self.tap_half = nn.Identity()
        self.tap_out = nn.Identity()

    def forward(self, z: Tensor, layout: TokenLayout) -> Tensor:
        patches, classes = self.tap_in(z).tensor_split([layout.rows * layout.columns], dim=1)
        update = self.compress(torch.cat([self.norm_compress(patches), classes], dim=1), layout)
        return self.tap_out(self.tap_half(torch.cat([patches, classes + update], dim=1)))
