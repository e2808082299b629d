"""Class attention: layers in which only the CLS token attends to the other tokens.

Shapes: B images, 1 + N tokens (CLS first), d embedding dimensions, K heads of dimension p.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .layer import head_width
from .mlp import MLP


class ClassAttention(nn.Module):
    """Softmax attention with the CLS token as the only query: ``(B, 1 + N, d) -> (B, 1, d)``.

    Args:
        embed_dim: d.
        num_heads: K.
        qkv_bias: whether queries, keys and values have a bias; the output projection always has one.

    Raises:
        ValueError: K does not divide d.
    """

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        head_width(embed_dim, num_heads)  # raises
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, qkv_bias)
        self.out = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        d = x.shape[-1]
        weights, biases = self.qkv.weight.split([d, 2 * d]), [None, None]
        if self.qkv.bias is not None:
            biases = self.qkv.bias.split([d, 2 * d])
        q = rearrange(F.linear(x[:, :1], weights[0], biases[0]), "B N (K p) -> B K N p", K=self.num_heads)
        kv = F.linear(x, weights[1], biases[1])
        k, v = rearrange(kv, "B N (two K p) -> two B K N p", two=2, K=self.num_heads)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "B K N p -> B N (K p)"))


class ClassAttentionBlock(nn.Module):
    """A layer of class attention as in ToST's code, ``(B, 1 + N, d) -> (B, 1 + N, d)``::

        u = LN(x);  x = x + gamma_1 [ClassAttention(u) ; u_patches]
        x = LN(x);  x = x + [gamma_2 MLP(x_cls) ; x_patches]

    The patches change too: ``gamma_1 u`` is added, the second LayerNorm normalizes the sum (with
    ``tokens_norm``), and the result is doubled.
    Source: Touvron et al., "Going deeper with Image Transformers", ICCV 2021, in the variant of El-Nouby et al.,
    "XCiT", NeurIPS 2021.

    Args:
        embed_dim: d.
        num_heads: K.
        layer_scale: initial value of both gammas, learned factors per channel.
        norm_eps: epsilon of both LayerNorms.
        qkv_bias: whether queries, keys and values have a bias.
        mlp_ratio: hidden width of the MLP, in multiples of d.
        tokens_norm: apply the second LayerNorm to all tokens, as above, not only to the CLS token.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        layer_scale: float,
        norm_eps: float = 1e-6,
        qkv_bias: bool = True,
        mlp_ratio: float = 4,
        tokens_norm: bool = True,
    ) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(embed_dim, norm_eps)
        self.attention = ClassAttention(embed_dim, num_heads, qkv_bias)
        self.norm_mlp = nn.LayerNorm(embed_dim, norm_eps)
        self.mlp = MLP(embed_dim, mlp_ratio)
        self.tokens_norm = tokens_norm
        self.gamma_attention = nn.Parameter(torch.full((embed_dim,), float(layer_scale)))
        self.gamma_mlp = nn.Parameter(torch.full((embed_dim,), float(layer_scale)))

    def forward(self, x: Tensor) -> Tensor:
        u = self.norm_attention(x)
        x = x + self.gamma_attention * torch.cat([self.attention(u), u[:, 1:]], dim=1)
        if self.tokens_norm:
            x = self.norm_mlp(x)
        cls, patches = x[:, :1], x[:, 1:]
        if not self.tokens_norm:
            cls = self.norm_mlp(cls)
        return torch.cat([cls + self.gamma_mlp * self.mlp(cls), 2 * patches], dim=1)
