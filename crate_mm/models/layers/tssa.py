"""Token statistics self-attention, the compression step of ToST; its cost is linear in N.

Shapes: B images, N tokens, d embedding dimensions, K heads (subspaces) of dimension p.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .layer import Compression, Subspaces


class TSSA(Compression):
    """Token statistics self-attention: ``(B, N, d) -> (B, N, d)``::

        w     = x U + b_u, in K heads of p channels
        s_kn  = sum_c w_knc^2 / sum_n' w_kn'c^2              each channel scaled to unit length over the tokens
        Pi    = softmax over k of (temp_k s_kn)              membership of token n in head k
        m_kc  = sum_n Pi_kn w_knc^2 / (sum_n Pi_kn + 1e-8)   second moment of channel c among the tokens of head k
        TSSA(x) = -concat_k(Pi_kn w_knc / (1 + m_kc)) W_o + b_o

    Tokens are not compared pairwise: there is no attention matrix. R^c uses the subspaces U. Source: Wu et al., "Token
    Statistics Transformer", ICLR 2025, arXiv 2412.17810, and its code, which learns ``W_o`` in place of the paper's
    ``U_k^T``, sets its ``d / eps^2`` and ``tau / n`` to 1 and has one ``temp`` per head.

    ``tap_w`` passes ``x U`` without ``b_u``, the input of R^c. ``tap_pi`` passes Pi, ``(B, K, N)``.

    Args:
        embed_dim: d.
        num_heads: K.
        bias: whether to use ``b_u`` and ``b_o``.
        proj_bias: whether to use ``b_u`` (default: as ``bias``).

    Raises:
        ValueError: K does not divide d.
    """

    def __init__(self, embed_dim: int, num_heads: int, bias: bool = True, proj_bias: bool | None = None) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.proj = nn.Linear(embed_dim, embed_dim, bias if proj_bias is None else proj_bias)
        self.temp = nn.Parameter(torch.ones(num_heads, 1))
        self.tap_pi = nn.Identity()
        self.out = nn.Linear(embed_dim, embed_dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        w = self.tap_w(F.linear(x, self.proj.weight))
        if self.proj.bias is not None:
            w = w + self.proj.bias.to(w.dtype)
        w_BKNp = rearrange(w, "B N (K p) -> B K N p", K=self.num_heads)
        # Statistics over many tokens need full precision under autocast too.
        squares_BKNp = w_BKNp.to(torch.promote_types(w.dtype, torch.float32)).square()
        lengths_BK1p = squares_BKNp.sum(-2, keepdim=True).clamp_min(1e-24)  # the official code clamps the root at 1e-12
        pi_BKN = self.tap_pi(torch.softmax((squares_BKNp / lengths_BK1p).sum(-1) * self.temp, dim=1))
        weight_BKN = pi_BKN / (pi_BKN.sum(-1, keepdim=True) + 1e-8)
        moments_BK1p = (weight_BKN.unsqueeze(-1) * squares_BKNp).sum(-2, keepdim=True)
        out_BKNp = -(pi_BKN.unsqueeze(-1) * w_BKNp) / (1 + moments_BK1p)
        return self.out(rearrange(out_BKNp, "B K N p -> B N (K p)").to(w.dtype))

    def subspaces(self) -> Subspaces:
        return Subspaces(self.proj.weight.mT, self.num_heads)
