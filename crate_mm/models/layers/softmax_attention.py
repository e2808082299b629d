"""Multi-head softmax self-attention, a compression step with separate queries, keys and values.

Shapes: B images, N tokens, d embedding dimensions, K heads of dimension p.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .layer import Compression, Map, TokenLayout, scaled_similarity


class SoftmaxAttention(Compression):
    """Multi-head softmax self-attention of a transformer: ``(B, N, d) -> (B, N, d)``::

        A_k(x) = softmax(q_k k_k^T / sqrt(p)) v_k,  [q, k, v] = x W + b
        SoftmaxAttention(x) = concat_k(A_k(x)) W_o + b_o

    It replaces MSSA in the ablation of Yu et al., "Emergence of Segmentation with Minimalistic White-Box
    Transformers", CPAL 2024, arXiv 2308.16271. It has no subspaces: R^c is not defined for it.

    ``tap_w`` passes its input ``(B, N, d)``.

    Args:
        embed_dim: d.
        num_heads: K.
        bias: whether to use ``b`` and ``b_o``.

    Raises:
        ValueError: K does not divide d.
    """

    def __init__(self, embed_dim: int, num_heads: int, bias: bool = True) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias)
        self.out = nn.Linear(embed_dim, embed_dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.tap_w(x))
        q, k, v = rearrange(qkv, "B N (three K p) -> three B K N p", three=3, K=self.num_heads)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "B K N p -> B N (K p)"))

    def maps(self, w: Tensor, layout: TokenLayout | None = None) -> dict[str, Map]:
        q, k, _ = self.qkv(w).chunk(3, dim=-1)
        return {"attention": Map(scaled_similarity(q, k, self.num_heads))}

    def keys(self, w: Tensor) -> Tensor:
        return self.qkv(w).chunk(3, dim=-1)[1]
