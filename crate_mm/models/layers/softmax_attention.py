"""Multi-head softmax self-attention, a compression step with separate queries, keys and values.

Shapes: B images, N tokens, d embedding dimensions, K heads of dimension p.
"""

from einops import rearrange
from torch import Tensor, nn

from .layer import Compression, Map, TokenLayout, attend, head_width, scaled_similarity, with_earlier


class SoftmaxAttention(Compression):
    """Multi-head softmax self-attention of a transformer: ``(B, N, d) -> (B, N, d)``::

        A_k(x) = softmax(q_k k_k^T / sqrt(p)) v_k,  [q, k, v] = x W + b
        SoftmaxAttention(x) = concat_k(A_k(x)) W_o + b_o

    It replaces MSSA in the ablation of Yu et al., "Emergence of Segmentation with Minimalistic White-Box
    Transformers", CPAL 2024, arXiv 2308.16271. It has no subspaces, so the coding rate R^c is
    not defined. ``tap_w`` passes the input ``(B, N, d)``.

    Args:
        embed_dim: d.
        num_heads: K.
        bias: whether to use ``b`` and ``b_o``.
        causal: whether the softmax excludes later tokens. The cache holds keys and values.

    Raises:
        ValueError: K does not divide d.
    """

    def __init__(self, embed_dim: int, num_heads: int, bias: bool = True, causal: bool = False) -> None:
        super().__init__()
        head_width(embed_dim, num_heads)  # raises
        self.num_heads, self.causal = num_heads, causal
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias)
        self.out = nn.Linear(embed_dim, embed_dim, bias)

    def forward(self, x: Tensor, cache: dict | None = None) -> Tensor:
        q, k, v = self.qkv(self.tap_w(x)).chunk(3, dim=-1)
        if cache is not None:
            k, v = with_earlier(cache, "k", k), with_earlier(cache, "v", v)
        q, k, v = (rearrange(x, "B N (K p) -> B K N p", K=self.num_heads) for x in (q, k, v))
        return self.out(rearrange(attend(q, k, v, self.causal), "B K N p -> B N (K p)"))

    def maps(self, w: Tensor, layout: TokenLayout | None = None) -> dict[str, Map]:
        q, k, _ = self.qkv(w).chunk(3, dim=-1)
        return {"attention": Map(scaled_similarity(q, k, self.num_heads, self.causal))}

    def keys(self, w: Tensor) -> Tensor:
        return self.qkv(w).chunk(3, dim=-1)[1]
