"""CBSA: contract and broadcast self-attention (Wen, Huang, Li, NeurIPS 2025, arXiv 2509.16875)."""

import torch
import torch.nn.functional as F
from torch import nn

from crate_mm.models.layers import Compression, Map, Subspaces
from crate_mm.registry import LAYERS


@LAYERS.register_module()
class CBSA(Compression):
    """Contract representatives of the tokens, and broadcast the contraction back to all tokens.

    The representatives are averages of the projected tokens over `pool` x `pool` parts of the grid. The official code
    pools the first rows * columns tokens (`shifted=True`): with a CLS token in front, that is one place off.
    """

    needs_layout = True

    def __init__(self, embed_dim, num_heads, pool=8, shifted=False):
        super().__init__()
        self.num_heads, self.pool, self.shifted = num_heads, pool, shifted
        self.proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.step_rep = nn.Parameter(torch.randn(num_heads, 1, 1))
        self.step_x = nn.Parameter(torch.randn(num_heads, 1, 1))
        self.to_out = nn.Linear(embed_dim, embed_dim)

    def split(self, w):
        return w.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, N, K p) to (B, K, N, p)

    def representatives(self, w, layout):
        """(B, N, K p) to (B, pool^2, K p)."""
        start = 0 if self.shifted else layout.prefix
        grid = w[:, start : start + layout.rows * layout.columns].mT.unflatten(-1, (layout.rows, layout.columns))
        return F.adaptive_avg_pool2d(grid, self.pool).flatten(2).mT

    def attention(self, w, layout):
        """Representatives q (B, K, m, p), tokens w (B, K, N, p), attention of q to w (B, K, m, N)."""
        q, w = self.split(self.representatives(w, layout)), self.split(w)
        return q, w, (q @ w.mT / w.shape[-1] ** 0.5).softmax(-1)

    def maps(self, w, layout):
        *_, attention = self.attention(w, layout)
        return {"attention": Map(attention, rows="representatives")}

    def subspaces(self):
        return Subspaces(self.proj.weight.T, self.num_heads)

    def forward(self, x, layout):
        q, w, attention = self.attention(self.tap_w(self.proj(x)), layout)
        r = q + self.step_rep * attention @ w
        contraction = (r @ r.mT / r.shape[-1] ** 0.5).softmax(-1) @ r
        return self.to_out((self.step_x * attention.mT @ contraction).transpose(1, 2).flatten(2))
